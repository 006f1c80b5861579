package state

import "unsafe"

// offsetIn returns where b, which is a part of mem, starts in it.
func offsetIn(mem, b []byte) int {
	// Safe: both pointers are only compared.
	return int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) - uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
}
