package mm

import (
	"sync/atomic"
	"unsafe"
)

// alignSlice returns how many bytes of b to skip to reach a 2 MiB boundary of the host's address space.
func alignSlice(b []byte) int {
	// Safe: only the address is looked at.
	return int(-uintptr(unsafe.Pointer(&b[0])) & (large - 1))
}

// loadWord atomically loads the aligned 32-bit word at the start of b.
func loadWord(b []byte) uint32 {
	// Safe: the callers pass 4 bytes of guest memory whose offset in its page is a multiple of 4.
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&b[:4][0])))
}

// casWord replaces the aligned 32-bit word at the start of b by val if it is old.
func casWord(b []byte, old, val uint32) bool {
	// Safe: as loadWord.
	return atomic.CompareAndSwapUint32((*uint32)(unsafe.Pointer(&b[:4][0])), old, val)
}

// adjacent reports whether b follows a directly in memory and within a's capacity, so that one slice can cover both.
func adjacent(a, b []byte) bool {
	// Safe: addresses are compared, nothing is accessed.
	return cap(a) >= len(a)+len(b) && uintptr(unsafe.Pointer(&a[0]))+uintptr(len(a)) == uintptr(unsafe.Pointer(&b[0]))
}
