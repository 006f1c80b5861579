package program

import "unsafe"

// badAddress is in no mapping (Linux maps nothing below 64 KiB), and not in the first page, so that Go does not
// take it for a nil dereference.
var badAddress uintptr = 0xbad0

// poke writes where nothing is. It stands alone because the compiler drops a write before an endless loop.
//
//go:noinline
func poke() {
	// Unsafe on purpose: the write must fault.
	*(*byte)(unsafe.Add(nil, badAddress)) = 1
}
