package ring_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/grailos/grail/ring"
)

// TestChainAccess compares ReadAt, WriteAt, Drop and DropLast with the same on one piece.
func TestChainAccess(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		flat := make([]byte, rng.IntN(40))
		for i := range flat {
			flat[i] = byte(rng.Uint32())
		}
		cut := func(b []byte) (segs [][]byte) {
			for len(b) > 0 {
				n := 1 + rng.IntN(len(b))
				segs = append(segs, b[:n])
				b = b[n:]
			}
			return segs
		}
		off := rng.IntN(len(flat) + 3)
		p := make([]byte, rng.IntN(50))
		c := ring.Chain{Readable: cut(flat)}
		n := c.ReadAt(p, uint32(off))
		if want := copy(make([]byte, len(p)), flat[min(off, len(flat)):]); n != want || !bytes.Equal(p[:n], flat[min(off, len(flat)):][:n]) {
			t.Fatalf("ReadAt(%d bytes, %d) of %d: %d", len(p), off, len(flat), n)
		}
		was := bytes.Clone(flat)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		c = ring.Chain{Writable: cut(flat)}
		n = c.WriteAt(p, uint32(off))
		if want := copy(was[min(off, len(was)):], p); n != want || !bytes.Equal(flat, was) {
			t.Fatalf("WriteAt(%d bytes, %d) of %d: %d", len(p), off, len(flat), n)
		}
		k := min(off, len(flat))
		if got := bytes.Join(ring.Drop(cut(flat), uint32(off)), nil); !bytes.Equal(got, flat[k:]) {
			t.Fatalf("Drop(%d) of %d: %d bytes", off, len(flat), len(got))
		}
		if got := bytes.Join(ring.DropLast(cut(flat), uint32(off)), nil); !bytes.Equal(got, flat[:len(flat)-k]) {
			t.Fatalf("DropLast(%d) of %d: %d bytes", off, len(flat), len(got))
		}
	}
}
