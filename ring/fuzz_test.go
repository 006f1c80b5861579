package ring_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
)

// fuzzMem returns memory whose first bytes are data.
func fuzzMem(n int, data []byte) []byte {
	b := alignedBytes(n)
	copy(b, data)
	return b
}

// FuzzDevicePop lets a device run on a queue of 8 whose whole memory is the input.
func FuzzDevicePop(f *testing.F) {
	const bytes = 1024
	l, err := ring.LayoutOf(8)
	if err != nil {
		f.Fatal(err)
	}
	for _, o := range ringtest.DriverOffences(768) {
		mem := alignedBytes(bytes)
		m, err := ring.NewMemory(ring.Region{Mem: mem})
		if err != nil {
			f.Fatal(err)
		}
		o.Do(ringtest.NewRaw(m, l.At(0, 0)))
		f.Add(mem, uint16(0), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, last uint16, indirect bool) {
		mem := fuzzMem(bytes, data)
		m, err := ring.NewMemory(ring.Region{Mem: mem})
		if err != nil {
			t.Fatal(err)
		}
		q := l.At(0, ring.FeatureEventIdx)
		if indirect {
			q.Features |= ring.FeatureIndirect
		}
		d, err := ring.NewDevice(m, ring.DeviceConfig{Queue: q, LastAvail: last, MaxSegments: 16})
		if err != nil {
			t.Fatal(err)
		}
		var c ring.Chain
		for n := 0; ; n++ {
			ok, err := d.Pop(&c)
			if err != nil && !ringtest.IsPeerError(err) {
				t.Fatalf("strange error: %v", err)
			}
			if !ok {
				break
			}
			if n == 8 {
				t.Fatal("more requests than descriptors")
			}
			if k := len(c.Readable) + len(c.Writable); k == 0 || k > 16 {
				t.Fatalf("%d segments", k)
			}
			var sum [2]uint32
			for i, segs := range [][][]byte{c.Readable, c.Writable} {
				for _, s := range segs {
					if len(s) == 0 || len(s) > bytes {
						t.Fatalf("segment of %d bytes", len(s))
					}
					sum[i] += uint32(len(s))
				}
			}
			if sum != [2]uint32{c.ReadableBytes, c.WritableBytes} {
				t.Fatalf("bytes %v, said %d and %d", sum, c.ReadableBytes, c.WritableBytes)
			}
		}
		if d.Err() == nil && !d.Arm() {
			t.Fatal("drained queue has work")
		}
		d.Publish()
	})
}

// FuzzDriverUsed gives a driver with 5 requests outstanding a used ring that is the input, in pieces.
func FuzzDriverUsed(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 0, 0, 0, 0, 8, 0, 0, 0}, uint16(0), uint8(1))
	f.Add([]byte{0, 0, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}, uint16(65534), uint8(9))
	f.Add([]byte{1, 0, 9, 0}, uint16(1), uint8(2))
	f.Fuzz(func(t *testing.T, used []byte, base uint16, batch uint8) {
		b, err := makeBed(8, ring.FeatureEventIdx, base, 0, false, 256)
		if err != nil {
			t.Fatal(err)
		}
		open := map[uint64]bool{}
		for i := range uint64(4) {
			if err := b.drv.Add([]ring.Segment{{Addr: b.data, Len: 8}}, []ring.Segment{{Addr: b.data, Len: uint32(i + 1)}}, i); err != nil {
				t.Fatal(err)
			}
			open[i] = true
		}
		b.drv.Publish()
		raw, err := b.m.Slice(b.q.Used, ring.UsedBytes(8))
		if err != nil {
			t.Fatal(err)
		}
		done := make([]ring.Completion, int(batch%6)+1)
		for len(used) > 0 {
			n := copy(raw, used)
			used = used[n:]
			n, err := b.drv.Used(done)
			for _, d := range done[:n] {
				if !open[d.Token] || d.Written > uint32(d.Token)+1 {
					t.Fatalf("completion %+v of what is outstanding: %v", d, open)
				}
				delete(open, d.Token)
			}
			if err != nil && !ringtest.IsPeerError(err) {
				t.Fatalf("strange error: %v", err)
			}
			if b.drv.Outstanding() != len(open) || b.drv.Free() != 8-2*len(open) {
				t.Fatalf("%d outstanding, %d free, want %d outstanding", b.drv.Outstanding(), b.drv.Free(), len(open))
			}
			if err != nil {
				return
			}
			b.drv.Arm()
		}
	})
}

// FuzzInflightRecover recovers a log whose whole memory is the input, and compares with the specification's
// procedure done the slow way.
func FuzzInflightRecover(f *testing.F) {
	empty := make([]byte, ring.InflightBytes(4))
	f.Add(empty, uint16(7))
	used := slices.Clone(empty)
	binary.LittleEndian.PutUint16(used[8:], 1)
	binary.LittleEndian.PutUint16(used[10:], 4)
	binary.LittleEndian.PutUint16(used[14:], 65535)
	for i := range 4 {
		used[16+16*i] = 1
		used[16+16*i+6] = byte(i + 1)
		used[16+16*i+8] = byte(7 - i)
	}
	f.Add(used, uint16(1))
	f.Add(used, uint16(65535))
	f.Add(used, uint16(3))
	f.Fuzz(func(t *testing.T, data []byte, usedIdx uint16) {
		mem := fuzzMem(int(ring.InflightBytes(4)), data)
		before := slices.Clone(mem)
		l, err := ring.NewInflight(mem, 4)
		if err != nil {
			t.Fatal(err)
		}
		heads, fresh, err := l.Recover(usedIdx)
		if err != nil {
			if !ringtest.IsPeerError(err) || !slices.Equal(before, mem) {
				t.Fatalf("error %v, log changed: %v", err, !slices.Equal(before, mem))
			}
			return
		}
		if !fresh {
			if want := ringtest.InFlight(before, usedIdx); !slices.Equal(heads, want) {
				t.Fatalf("recovered %v, want %v", heads, want)
			}
		}
		// What was recovered must survive the next crash as well.
		again, err := ring.NewInflight(mem, 4)
		if err != nil {
			t.Fatal(err)
		}
		heads2, fresh2, err := again.Recover(usedIdx)
		if err != nil || fresh2 || !slices.Equal(heads, heads2) {
			t.Fatalf("second recovery: %v %v %v, first: %v", heads2, fresh2, err, heads)
		}
	})
}
