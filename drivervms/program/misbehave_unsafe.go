package program

import "unsafe"

// badAddress is in no mapping (Linux maps nothing below 64 KiB), and not in the first page, so that Go does not
// take it for a nil dereference.
var badAddress uintptr = 0xbad0

// Misbehave makes the program fault or hang, on request, to show that nobody else is harmed.
func Misbehave(how string) {
	if how == "fault" {
		poke(unsafe.Add(nil, badAddress))
	}
	for {
	}
}

// poke writes to p. It stands alone because the compiler drops a write before an endless loop.
//
//go:noinline
func poke(p unsafe.Pointer) {
	// Unsafe on purpose: the write must fault.
	*(*byte)(p) = 1
}
