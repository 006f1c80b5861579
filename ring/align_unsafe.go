package ring

import "unsafe"

// aligned reports whether the first byte of b lies at a multiple of n in this process's address space.
// Alignment in the peer's addresses says nothing about ours, and a misaligned acquire load faults on arm64.
func aligned(b []byte, n uintptr) bool {
	// Safe: the pointer is only turned into a number, never dereferenced or kept.
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%n == 0
}
