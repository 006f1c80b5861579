package vfs

import (
	"sync/atomic"
	"unsafe"
)

// counter views the first 8 bytes of b as an atomic counter. b stays mapped for the table's lifetime (see Config.Busy), and
// alignment and length are checked here.
func counter(b []byte) (*atomic.Uint64, error) {
	if len(b) < 8 || uintptr(unsafe.Pointer(&b[0]))%8 != 0 {
		return nil, errBadCounter
	}
	return (*atomic.Uint64)(unsafe.Pointer(&b[0])), nil
}
