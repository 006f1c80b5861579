package logfile

import (
	"sync/atomic"
	"unsafe"
)

// aligned reports whether words of mem can be used atomically.
func aligned(mem []byte) bool { return uintptr(unsafe.Pointer(unsafe.SliceData(mem)))%8 == 0 }

// word returns the number at offset, which is a multiple of 8.
func word(mem []byte, offset int) *atomic.Uint64 {
	_ = mem[offset+7]
	// Safe: the bytes are inside of mem, which the pointer keeps alive, and NewWriter has seen to the alignment.
	return (*atomic.Uint64)(unsafe.Pointer(&mem[offset]))
}
