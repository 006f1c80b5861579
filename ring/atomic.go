package ring

// The functions below are implemented in atomic_amd64.s and atomic_arm64.s. They take *byte because ring
// memory is []byte everywhere; the caller guarantees natural alignment of the 16-bit ones (see aligned).
// They are opaque calls, so the compiler keeps every earlier plain store before them and every later plain
// load after them.

// load16 loads a little-endian uint16 with acquire ordering.
//
//go:noescape
func load16(p *byte) uint16

// store16 stores a little-endian uint16 with release ordering.
//
//go:noescape
func store16(p *byte, v uint16)

// store8 stores one byte with release ordering.
//
//go:noescape
func store8(p *byte, v uint8)

// fence orders every earlier load and store before every later one, the store-then-load case included.
//
//go:noescape
func fence()

// pause executes n processor hints of a spinning loop (PAUSE, YIELD). n may be 0.
//
//go:noescape
func pause(n uint32)
