package serve

import "unsafe"

// inside reports whether an address is one of mem.
func inside(mem [][]byte, addr uintptr) bool {
	for _, b := range mem {
		// Safe: the address is only compared.
		if base := uintptr(unsafe.Pointer(unsafe.SliceData(b))); addr >= base && addr-base < uintptr(len(b)) {
			return true
		}
	}
	return false
}
