package ring_test

import (
	"errors"
	"testing"

	"github.com/grailos/grail/ring"
)

func TestLayout(t *testing.T) {
	for _, size := range []uint16{1, 2, 4, 128, 1024, ring.MaxSize} {
		l, err := ring.LayoutOf(size)
		if err != nil {
			t.Fatal(err)
		}
		if l.Desc != 0 || l.Avail < l.Desc+uint64(16*uint32(size)) || l.Used < l.Avail+uint64(6+2*uint32(size)) || l.Bytes < l.Used+uint64(6+8*uint32(size)) {
			t.Errorf("size %d: parts overlap: %+v", size, l)
		}
		if l.Avail%128 != 0 || l.Used%128 != 0 || l.Bytes%128 != 0 {
			t.Errorf("size %d: parts share cache lines: %+v", size, l)
		}
		q := l.At(0x5000, 7)
		if q != (ring.Queue{Size: size, Desc: 0x5000, Avail: 0x5000 + l.Avail, Used: 0x5000 + l.Used, Features: 7}) {
			t.Errorf("size %d: %+v", size, q)
		}
	}
	for _, size := range []uint16{0, 3, 100, ring.MaxSize + 1, 65535} {
		if _, err := ring.LayoutOf(size); !errors.Is(err, ring.ErrConfig) {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

// TestQueueRejects checks §2.7's alignments, in the peer's addresses and in ours, and the bounds of each part.
func TestQueueRejects(t *testing.T) {
	mem := alignedBytes(1 << 16)
	m, err := ring.NewMemory(ring.Region{Base: 0x1000, Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	odd, err := ring.NewMemory(ring.Region{Base: 0x1000, Mem: mem[1:]})
	if err != nil {
		t.Fatal(err)
	}
	l, _ := ring.LayoutOf(8)
	good := l.At(0x1000, 0)
	for _, c := range []struct {
		name string
		m    *ring.Memory
		edit func(*ring.Queue)
		want error
	}{
		{"good", m, func(*ring.Queue) {}, nil},
		{"available ring at an odd word", m, func(q *ring.Queue) { q.Avail += 2 }, nil},
		{"size 0", m, func(q *ring.Queue) { q.Size = 0 }, ring.ErrConfig},
		{"size 3", m, func(q *ring.Queue) { q.Size = 3 }, ring.ErrConfig},
		{"size 65535", m, func(q *ring.Queue) { q.Size = 65535 }, ring.ErrConfig},
		{"descriptor table misaligned", m, func(q *ring.Queue) { q.Desc += 8 }, ring.ErrConfig},
		{"available ring misaligned", m, func(q *ring.Queue) { q.Avail++ }, ring.ErrConfig},
		{"used ring misaligned", m, func(q *ring.Queue) { q.Used += 2 }, ring.ErrConfig},
		{"mapping misaligned", odd, func(*ring.Queue) {}, ring.ErrConfig},
		{"descriptor table outside", m, func(q *ring.Queue) { q.Desc = 0x11000 - 16*8 + 16 }, ring.ErrRange},
		{"descriptor table at the very end", m, func(q *ring.Queue) { q.Desc = 0x11000 - 16*8 }, nil},
		{"available ring outside", m, func(q *ring.Queue) { q.Avail = 0x11000 - 20 }, ring.ErrRange},
		{"used ring outside", m, func(q *ring.Queue) { q.Used = 0xffff_ffff_ffff_fffc }, ring.ErrRange},
	} {
		q := good
		c.edit(&q)
		if _, err := ring.NewDevice(c.m, ring.DeviceConfig{Queue: q}); !errors.Is(err, c.want) {
			t.Errorf("%s: device: %v, want %v", c.name, err, c.want)
		}
		if _, err := ring.NewDriver(c.m, ring.DriverConfig{Queue: q}); !errors.Is(err, c.want) {
			t.Errorf("%s: driver: %v, want %v", c.name, err, c.want)
		}
	}
	for name, c := range map[string]ring.DriverConfig{
		"tables without the feature": {Queue: good, IndirectTables: 0x2000, IndirectMax: 4},
		"tables misaligned":          {Queue: l.At(0x1000, ring.FeatureIndirect), IndirectTables: 0x2008, IndirectMax: 4},
	} {
		if _, err := ring.NewDriver(m, c); !errors.Is(err, ring.ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ring.NewDriver(m, ring.DriverConfig{Queue: l.At(0x1000, ring.FeatureIndirect), IndirectTables: 0x10f00, IndirectMax: 4}); !errors.Is(err, ring.ErrRange) {
		t.Errorf("tables outside: %v", err)
	}
}
