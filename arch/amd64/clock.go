package amd64

// Clock holds the parameters from which guest user mode computes the time, in the order that the vDSO code
// reads them at ClockOffset, 8 bytes each. The writer makes Sequence odd, changes the rest, and makes
// it even again; a reader that saw an odd or a changed Sequence starts over.
//
// Time in nanoseconds = base + (TSC - Stamp) × Mult / 2³².
type Clock struct {
	Sequence  uint64
	Stamp     uint64 // TSC value at which the bases held
	Mult      uint64 // nanoseconds a TSC tick, as a 32.32 fixed-point number
	Monotonic uint64 // CLOCK_MONOTONIC at Stamp, in ns
	Realtime  uint64 // CLOCK_REALTIME at Stamp, in ns since the epoch
}
