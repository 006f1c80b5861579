package ring_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/grailos/grail/ring"
)

func TestRoundTrip(t *testing.T) {
	for _, size := range []uint16{1, 2, 4, 256} {
		for _, features := range []uint64{0, ring.FeatureEventIdx, ring.FeatureIndirect, ring.FeatureEventIdx | ring.FeatureIndirect} {
			for _, logged := range []bool{false, true} {
				t.Run(fmt.Sprintf("size=%d/features=%#x/log=%v", size, features, logged), func(t *testing.T) {
					max := uint16(0)
					if features&ring.FeatureIndirect != 0 {
						max = 4
					}
					b := newBed(t, size, features, 65530, max, logged)
					roundTrips(t, b, 40)
				})
			}
		}
	}
}

// roundTrips sends n requests one at a time, each a number that the device answers with its successor.
func roundTrips(t *testing.T, b *bed, n int) {
	t.Helper()
	readable := []ring.Segment{{Addr: b.data, Len: 8}}
	writable := []ring.Segment{{Addr: b.data + 8, Len: 4}, {Addr: b.data + 100, Len: 4}}
	if b.q.Size < 4 && b.dcfg.IndirectMax == 0 {
		readable, writable = []ring.Segment{{Addr: b.data, Len: 8}}, nil
	}
	in, _ := b.m.Slice(b.data, 8)
	lo, _ := b.m.Slice(b.data+8, 4)
	hi, _ := b.m.Slice(b.data+100, 4)
	var c ring.Chain
	var done [4]ring.Completion
	for i := range n {
		binary.LittleEndian.PutUint64(in, uint64(i)<<30)
		if err := b.drv.Add(readable, writable, uint64(i)); err != nil {
			t.Fatal(err)
		}
		if ok, err := b.dev.Pop(&c); ok || err != nil {
			t.Fatalf("Pop before Publish: %v %v", ok, err)
		}
		if !b.dev.Arm() {
			t.Fatal("Arm found work in an empty ring")
		}
		if !b.drv.Publish() {
			t.Fatal("armed device gets no kick")
		}
		if b.dev.Arm() {
			t.Fatal("Arm missed the request")
		}
		if ok, err := b.dev.Pop(&c); !ok || err != nil {
			t.Fatalf("Pop: %v %v", ok, err)
		}
		var buf [8]byte
		if c.ReadAt(buf[:], 0) != 8 {
			t.Fatal("short request")
		}
		binary.LittleEndian.PutUint64(buf[:], binary.LittleEndian.Uint64(buf[:])+1)
		wrote := c.WriteAt(buf[:], 0)
		b.dev.Push(c.Head, uint32(wrote))
		if !b.drv.Arm() {
			t.Fatal("unpublished completion is visible")
		}
		if !b.dev.Publish() {
			t.Fatal("armed driver gets no call")
		}
		if k, err := b.drv.Used(done[:]); k != 1 || err != nil || done[0] != (ring.Completion{Token: uint64(i), Written: uint32(wrote)}) {
			t.Fatalf("Used: %d %v %+v", k, err, done[0])
		}
		if writable != nil {
			copy(buf[:4], lo)
			copy(buf[4:], hi)
			if got := binary.LittleEndian.Uint64(buf[:]); got != uint64(i)<<30+1 {
				t.Fatalf("answer %#x to %#x", got, uint64(i)<<30)
			}
		}
	}
	if b.drv.Outstanding() != 0 || b.drv.Free() != int(b.q.Size) || b.dev.InFlight() != 0 {
		t.Fatalf("left over: %d outstanding, %d free, %d in flight", b.drv.Outstanding(), b.drv.Free(), b.dev.InFlight())
	}
}

func TestDriverFull(t *testing.T) {
	b := newBed(t, 4, 0, 0, 0, false)
	seg := []ring.Segment{{Addr: b.data, Len: 1}}
	for i := range 4 {
		if err := b.drv.Add(seg, nil, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.drv.Add(seg, nil, 4); !errors.Is(err, ring.ErrFull) {
		t.Fatalf("fifth of four: %v", err)
	}
	for _, bad := range [][]ring.Segment{nil, {{Addr: b.data}}, make([]ring.Segment, 5), {{Len: 1 << 31}, {Len: 1 << 31}}} {
		if err := b.drv.Add(bad, nil, 0); !errors.Is(err, ring.ErrChain) {
			t.Errorf("chain %v: %v", bad, err)
		}
	}
}

func TestRecoverOrder(t *testing.T) {
	b := newBed(t, 8, 0, 65533, 0, true)
	seg := []ring.Segment{{Addr: b.data, Len: 8}}
	for i := range 8 {
		if err := b.drv.Add(seg, nil, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	b.drv.Publish()
	var c ring.Chain
	var heads []uint16
	for range 6 {
		if ok, err := b.dev.Pop(&c); !ok {
			t.Fatal(err)
		}
		heads = append(heads, c.Head)
	}
	b.dev.Push(heads[4], 0)
	b.dev.Push(heads[1], 0)
	b.dev.Publish()
	b.dev.Push(heads[0], 0) // not published: the crash comes first
	b.newDevice(t, 0)
	want := []uint16{heads[0], heads[2], heads[3], heads[5]}
	for i, w := range want {
		if ok, err := b.dev.Pop(&c); !ok || c.Head != w || !c.Recovered {
			t.Fatalf("recovered %d: %v %v %+v, want head %d", i, ok, err, c, w)
		}
		b.dev.Push(c.Head, 0)
	}
	for range 2 {
		if ok, err := b.dev.Pop(&c); !ok || c.Recovered {
			t.Fatalf("new request after recovery: %v %v %+v", ok, err, c)
		}
		b.dev.Push(c.Head, 0)
	}
	if ok, err := b.dev.Pop(&c); ok || err != nil {
		t.Fatalf("one too many: %v %v", ok, err)
	}
	b.dev.Publish()
	done := make([]ring.Completion, 16)
	if n, err := b.drv.Used(done); n != 8 || err != nil {
		t.Fatalf("completions: %d %v", n, err)
	}
}
