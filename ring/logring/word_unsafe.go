package logring

import (
	"sync/atomic"
	"unsafe"
)

// aligned reports whether words of mem can be used atomically.
func aligned(mem []byte) bool { return uintptr(unsafe.Pointer(unsafe.SliceData(mem)))%8 == 0 }

// word64 returns the number at offset.
func word64(mem []byte, offset int) *atomic.Uint64 {
	_ = mem[offset+7]
	// Safe: the bytes are inside of mem, which the pointer keeps alive, and check has seen to the alignment; every offset is a multiple of 8.
	return (*atomic.Uint64)(unsafe.Pointer(&mem[offset]))
}

// word32 returns the number at offset.
func word32(mem []byte, offset int) *atomic.Uint32 {
	_ = mem[offset+3]
	// Safe: as word64.
	return (*atomic.Uint32)(unsafe.Pointer(&mem[offset]))
}
