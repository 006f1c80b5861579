package ring

// Chain is one request as a device sees it: the memory of its descriptors, readable ones first. A Chain is
// reused from Pop to Pop and keeps its slices' capacity; use one for every request that is in work at the
// same time. The bytes are shared with the peer, who may change them at any moment: read once, bound, use.
type Chain struct {
	Head          uint16   // names the request in Push
	Recovered     bool     // came from the in-flight log: an earlier device may have done it already
	Readable      [][]byte // segments that the device reads, in order
	Writable      [][]byte // segments that the device writes, in order
	ReadableBytes uint32
	WritableBytes uint32
}

func (c *Chain) reset(head uint16) {
	c.Head, c.Recovered = head, false
	c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
	c.ReadableBytes, c.WritableBytes = 0, 0
}

// ReadAt copies readable bytes from offset off on into p and returns how many there were.
func (c *Chain) ReadAt(p []byte, off uint32) int {
	n := 0
	for _, s := range c.Readable {
		if n == len(p) {
			break
		}
		if uint64(off) >= uint64(len(s)) {
			off -= uint32(len(s))
			continue
		}
		n += copy(p[n:], s[off:])
		off = 0
	}
	return n
}

// WriteAt copies p into the writable bytes from offset off on and returns how many bytes had room.
func (c *Chain) WriteAt(p []byte, off uint32) int {
	n := 0
	for _, s := range c.Writable {
		if n == len(p) {
			break
		}
		if uint64(off) >= uint64(len(s)) {
			off -= uint32(len(s))
			continue
		}
		n += copy(s[off:], p[n:])
		off = 0
	}
	return n
}

// Drop removes the first n bytes of segs, in place, and returns what is left. When segs holds fewer than n
// bytes nothing is left. It does not allocate.
func Drop(segs [][]byte, n uint32) [][]byte {
	for len(segs) > 0 && uint64(n) >= uint64(len(segs[0])) {
		n -= uint32(len(segs[0]))
		segs = segs[1:]
	}
	if len(segs) > 0 {
		segs[0] = segs[0][n:]
	}
	return segs
}

// Cut appends the first n bytes of segs to piece, and returns it and what is left of segs, which it changes in place.
func Cut(piece, segs [][]byte, n uint32) (got, left [][]byte) {
	for n > 0 && len(segs) > 0 {
		if uint64(len(segs[0])) > uint64(n) {
			piece = append(piece, segs[0][:n:n])
			return piece, Drop(segs, n)
		}
		piece = append(piece, segs[0])
		n -= uint32(len(segs[0]))
		segs = segs[1:]
	}
	return piece, segs
}

// DropLast removes the last n bytes of segs, in place, and returns what is left. When segs holds fewer than n
// bytes nothing is left. It does not allocate.
func DropLast(segs [][]byte, n uint32) [][]byte {
	for len(segs) > 0 && uint64(n) >= uint64(len(segs[len(segs)-1])) {
		n -= uint32(len(segs[len(segs)-1]))
		segs = segs[:len(segs)-1]
	}
	if k := len(segs) - 1; k >= 0 {
		segs[k] = segs[k][:uint32(len(segs[k]))-n]
	}
	return segs
}
