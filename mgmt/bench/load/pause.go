package load

// pause tells the processor that a polling loop goes round, n times. A sibling hardware thread runs the faster for it.
//
//go:noescape
func pause(n uint32)
