package virtioblk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// TestConfigLayout checks each field's place against struct virtio_blk_config of virtio 1.2 §5.2.4.
func TestConfigLayout(t *testing.T) {
	for name, f := range map[string]struct {
		set func(*virtioblk.Config)
		at  int
		n   int
	}{
		"capacity":                 {func(c *virtioblk.Config) { c.Capacity = 1<<64 - 1 }, 0, 8},
		"size_max":                 {func(c *virtioblk.Config) { c.SizeMax = 1<<32 - 1 }, 8, 4},
		"seg_max":                  {func(c *virtioblk.Config) { c.SegMax = 1<<32 - 1 }, 12, 4},
		"cylinders":                {func(c *virtioblk.Config) { c.Cylinders = 1<<16 - 1 }, 16, 2},
		"heads":                    {func(c *virtioblk.Config) { c.Heads = 255 }, 18, 1},
		"sectors":                  {func(c *virtioblk.Config) { c.Sectors = 255 }, 19, 1},
		"blk_size":                 {func(c *virtioblk.Config) { c.BlockSize = 1<<32 - 1 }, 20, 4},
		"physical_block_exp":       {func(c *virtioblk.Config) { c.PhysicalBlockExp = 255 }, 24, 1},
		"alignment_offset":         {func(c *virtioblk.Config) { c.AlignmentOffset = 255 }, 25, 1},
		"min_io_size":              {func(c *virtioblk.Config) { c.MinIOSize = 1<<16 - 1 }, 26, 2},
		"opt_io_size":              {func(c *virtioblk.Config) { c.OptIOSize = 1<<32 - 1 }, 28, 4},
		"writeback":                {func(c *virtioblk.Config) { c.Writeback = 255 }, 32, 1},
		"num_queues":               {func(c *virtioblk.Config) { c.NumQueues = 1<<16 - 1 }, 34, 2},
		"max_discard_sectors":      {func(c *virtioblk.Config) { c.MaxDiscardSectors = 1<<32 - 1 }, 36, 4},
		"max_discard_seg":          {func(c *virtioblk.Config) { c.MaxDiscardSegs = 1<<32 - 1 }, 40, 4},
		"discard_sector_alignment": {func(c *virtioblk.Config) { c.DiscardAlignment = 1<<32 - 1 }, 44, 4},
		"max_write_zeroes_sectors": {func(c *virtioblk.Config) { c.MaxWriteZeroSectors = 1<<32 - 1 }, 48, 4},
		"max_write_zeroes_seg":     {func(c *virtioblk.Config) { c.MaxWriteZeroSegs = 1<<32 - 1 }, 52, 4},
		"write_zeroes_may_unmap":   {func(c *virtioblk.Config) { c.WriteZeroMayUnmap = 255 }, 56, 1},
	} {
		var c virtioblk.Config
		f.set(&c)
		var want [virtioblk.ConfigBytes]byte
		for i := range f.n {
			want[f.at+i] = 0xff
		}
		if got := c.Encode(); got != want {
			t.Errorf("%s: % x", name, got)
		}
		if got := virtioblk.DecodeConfig(want[:]); got != c {
			t.Errorf("%s: decoded %+v", name, got)
		}
	}
	if n := reflect.TypeFor[virtioblk.Config]().NumField(); n != 19 {
		t.Errorf("%d fields, 19 checked", n)
	}
	long := append([]byte{9}, make([]byte, 100)...)
	for _, b := range [][]byte{long, long[:8], long[:1]} {
		if c := virtioblk.DecodeConfig(b); c != (virtioblk.Config{Capacity: 9}) {
			t.Errorf("of %d bytes: %+v", len(b), c)
		}
	}
}

func TestHeaderAndRange(t *testing.T) {
	b := bytes.Repeat([]byte{0xee}, 16)
	h := virtioblk.Header{Type: virtioblk.TypeWriteZeroes, Sector: 0x0102030405060708}
	h.Encode(b)
	if want := []byte{13, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1}; !bytes.Equal(b, want) || virtioblk.DecodeHeader(b) != h {
		t.Errorf("% x", b)
	}
	r := virtioblk.Range{Sector: 0x1112131415161718, Count: 0x21222324, Flags: virtioblk.RangeUnmap}
	r.Encode(b)
	if want := []byte{0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21, 1, 0, 0, 0}; !bytes.Equal(b, want) || virtioblk.DecodeRange(b) != r {
		t.Errorf("% x", b)
	}
}

// cut divides b into random pieces.
func cut(rng *rand.Rand, b []byte) (segs [][]byte) {
	for len(b) > 0 {
		n := 1 + rng.IntN(len(b))
		segs = append(segs, b[:n:n])
		b = b[n:]
	}
	return segs
}

// TestParseFraming: virtio 1.2 §2.7.4: the division into descriptors means nothing.
func TestParseFraming(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		typ := []uint32{virtioblk.TypeIn, virtioblk.TypeOut, virtioblk.TypeFlush, virtioblk.TypeGetID, virtioblk.TypeDiscard, 77}[rng.IntN(6)]
		isRead := typ == virtioblk.TypeIn || typ == virtioblk.TypeGetID
		readable, writable := make([]byte, 16+rng.IntN(40)), make([]byte, 1+rng.IntN(40))
		for i := range readable {
			readable[i] = byte(rng.Uint32())
		}
		binary.LittleEndian.PutUint32(readable, typ)
		c := ring.Chain{
			Head: 7, Readable: cut(rng, readable), Writable: cut(rng, writable),
			ReadableBytes: uint32(len(readable)), WritableBytes: uint32(len(writable)),
		}
		var r virtioblk.Request
		if err := r.Parse(&c); err != nil {
			t.Fatal(err)
		}
		want := readable[16:]
		if isRead {
			want = writable[:len(writable)-1]
		}
		got := bytes.Join(r.Data, nil)
		if r.Head != 7 || r.Type != typ || r.Sector != binary.LittleEndian.Uint64(readable[8:]) || int(r.DataBytes) != len(want) || !bytes.Equal(got, want) {
			t.Fatalf("%+v of %d+%d bytes", r, len(readable), len(writable))
		}
		for _, s := range r.Data {
			if len(s) == 0 {
				t.Fatal("empty segment")
			}
			if isRead {
				s[0] = 0xaa
			}
		}
		n := r.Finish(virtioblk.StatusUnsupported)
		if writable[len(writable)-1] != virtioblk.StatusUnsupported {
			t.Fatal("status is not the last byte")
		}
		if isRead && len(want) > 0 && n != 0 {
			t.Fatalf("failed read reports %d bytes", n)
		}
		if n := r.Finish(virtioblk.StatusOK); isRead && int(n) != len(writable) || int(n) > len(writable) {
			t.Fatalf("reports %d of %d bytes", n, len(writable))
		}
	}
}

func TestParseRejects(t *testing.T) {
	for _, c := range []ring.Chain{
		{},
		{Readable: [][]byte{make([]byte, 15)}, ReadableBytes: 15, Writable: [][]byte{make([]byte, 1)}, WritableBytes: 1},
		{Readable: [][]byte{make([]byte, 16)}, ReadableBytes: 16},
		{Writable: [][]byte{make([]byte, 17)}, WritableBytes: 17},
	} {
		if err := new(virtioblk.Request).Parse(&c); !errors.Is(err, virtioblk.ErrRequest) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	head, data, status := make([]byte, 16), make([]byte, 512), make([]byte, 1)
	readable, writable := make([][]byte, 1), make([][]byte, 2)
	var r virtioblk.Request
	if n := testing.AllocsPerRun(100, func() {
		readable[0], writable[0], writable[1] = head, data, status
		c := ring.Chain{Readable: readable, Writable: writable, ReadableBytes: 16, WritableBytes: 513}
		if err := r.Parse(&c); err != nil || r.Finish(0) != 513 {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
