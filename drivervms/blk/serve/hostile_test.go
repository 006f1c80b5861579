package serve

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// raw is a client that makes its requests by hand.
type raw struct {
	t   *testing.T
	mem []byte
	drv *ring.Driver
	s   *Server
	dev *memDevice
}

const rawData = 64 << 10 // where raw's buffers start

func newRaw(t *testing.T, readOnly bool) *raw {
	t.Helper()
	r := &raw{t: t, mem: sharedMemory(t, 4<<20), dev: newMemDevice(1 << 20)}
	m, err := ring.NewMemory(ring.Region{Mem: r.mem})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ring.LayoutOf(512)
	if err != nil {
		t.Fatal(err)
	}
	q := l.At(0, guest.DiskFeatures)
	if r.drv, err = ring.NewDriver(m, ring.DriverConfig{Queue: q}); err != nil {
		t.Fatal(err)
	}
	r.s = New(r.dev, []Disk{{Name: "disk", FD: 7, Size: 1<<20 + 100, ReadOnly: readOnly}}, ring.PollerConfig{})
	err = r.s.Attach(Client{
		ID: 1, Name: "raw", Disk: "disk", Features: guest.DiskFeatures | virtioblk.FeatureFlush, Memory: m,
		Queues: []Queue{{Queue: q, Kick: ring.DoorbellOf(-1), Call: ring.DoorbellOf(-1)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// request performs one request with the given readable bytes after the header and room for write bytes before
// the status, and returns the status; 0xee means that none came.
func (r *raw) request(h virtioblk.Header, data []byte, room uint32) byte {
	r.t.Helper()
	h.Encode(r.mem[rawData:])
	status := uint64(rawData + 16)
	r.mem[status] = 0xee
	read := []ring.Segment{{Addr: rawData, Len: 16}}
	var write []ring.Segment
	if len(data) > 0 {
		copy(r.mem[rawData+64:], data)
		read = append(read, ring.Segment{Addr: rawData + 64, Len: uint32(len(data))})
	}
	if room > 0 {
		write = append(write, ring.Segment{Addr: rawData + 64, Len: room})
	}
	write = append(write, ring.Segment{Addr: status, Len: 1})
	if err := r.drv.Add(read, write, 1); err != nil {
		r.t.Fatal(err)
	}
	r.drv.Publish()
	r.s.Round()
	var done [1]ring.Completion
	if n, err := r.drv.Used(done[:]); err != nil || n == 0 && r.mem[status] != 0xee {
		r.t.Fatal(n, err)
	}
	return r.mem[status]
}

func rangesOf(rs ...virtioblk.Range) []byte {
	var b []byte
	for _, r := range rs {
		var e [virtioblk.RangeBytes]byte
		r.Encode(e[:])
		b = append(b, e[:]...)
	}
	return b
}

func TestRequests(t *testing.T) {
	const (
		in, out, flush, id, discard, zero = virtioblk.TypeIn, virtioblk.TypeOut, virtioblk.TypeFlush,
			virtioblk.TypeGetID, virtioblk.TypeDiscard, virtioblk.TypeWriteZeroes
		ok, ioerr, unsupp = virtioblk.StatusOK, virtioblk.StatusIOErr, virtioblk.StatusUnsupported
		last              = 2047 // sector
	)
	sector := make([]byte, 512)
	many := make([]virtioblk.Range, MaxRanges+1)
	for _, c := range []struct {
		name     string
		kind     uint32
		sector   uint64
		data     []byte
		room     uint32
		want, ro byte // on a writable and on a read-only disk
	}{
		{"read first", in, 0, nil, 512, ok, ok},
		{"read last", in, last, nil, 512, ok, ok},
		{"read across end", in, last, nil, 1024, ioerr, ioerr},
		{"read behind end", in, last + 1, nil, 512, ioerr, ioerr},
		{"read nothing at end", in, last + 1, nil, 0, ok, ok},
		{"read wraps bytes", in, 1 << 55, nil, 512, ioerr, ioerr},
		{"read wraps sectors", in, math.MaxUint64, nil, 512, ioerr, ioerr},
		{"read wraps to 0", in, math.MaxUint64, nil, 1024, ioerr, ioerr},
		{"read odd size", in, 0, nil, 513, ioerr, ioerr},
		{"read less than a sector", in, 0, nil, 1, ioerr, ioerr},
		{"read all", in, 0, nil, 1 << 20, ok, ok},
		{"write first", out, 0, sector, 0, ok, ioerr},
		{"write last", out, last, sector, 0, ok, ioerr},
		{"write behind end", out, last + 1, sector, 0, ioerr, ioerr},
		{"write odd size", out, 0, sector[:511], 0, ioerr, ioerr},
		{"write wraps", out, math.MaxUint64 / 512, sector, 0, ioerr, ioerr},
		{"flush", flush, 0, nil, 0, ok, ok},
		{"flush with sector and data", flush, 99, sector, 0, ok, ok},
		{"id", id, 0, nil, 20, ok, ok},
		{"id short", id, 0, nil, 19, ioerr, ioerr},
		{"id long", id, 0, nil, 21, ioerr, ioerr},
		{"id nowhere", id, 0, nil, 0, ioerr, ioerr},
		{"discard", discard, 0, rangesOf(virtioblk.Range{Sector: 8, Count: 8}), 0, ok, ioerr},
		{"discard all", discard, 0, rangesOf(virtioblk.Range{Count: last + 1}), 0, ok, ioerr},
		{"discard beyond", discard, 0, rangesOf(virtioblk.Range{Sector: 1, Count: last + 1}), 0, ioerr, ioerr},
		{"discard wraps", discard, 0, rangesOf(virtioblk.Range{Sector: math.MaxUint64, Count: 2}), 0, ioerr, ioerr},
		{"discard with unmap", discard, 0, rangesOf(virtioblk.Range{Count: 8, Flags: 1}), 0, unsupp, ioerr},
		{"discard half a range", discard, 0, make([]byte, 8), 0, ioerr, ioerr},
		{"discard nothing", discard, 0, nil, 0, ioerr, ioerr},
		{"discard most ranges", discard, 0, rangesOf(many[:MaxRanges]...), 0, ok, ioerr},
		{"discard too many ranges", discard, 0, rangesOf(many...), 0, ioerr, ioerr},
		{"discard second bad", discard, 0, rangesOf(virtioblk.Range{Count: 8}, virtioblk.Range{Sector: last + 2}), 0, ioerr, ioerr},
		{"zero", zero, 0, rangesOf(virtioblk.Range{Count: 8, Flags: 1}), 0, ok, ioerr},
		{"zero unknown flag", zero, 0, rangesOf(virtioblk.Range{Count: 8, Flags: 2}), 0, unsupp, ioerr},
		{"unknown type", 5, 0, nil, 512, unsupp, unsupp},
		{"barrier bit", 1 << 31, 0, sector, 0, unsupp, unsupp},
	} {
		for _, ro := range []bool{false, true} {
			want := c.want
			if ro {
				want = c.ro
			}
			r := newRaw(t, ro)
			if got := r.request(virtioblk.Header{Type: c.kind, Sector: c.sector}, c.data, c.room); got != want {
				t.Errorf("%s, read-only %t: status %d, want %d", c.name, ro, got, want)
			}
			if len(r.s.Deaths) > 0 {
				t.Error(c.name, r.s.Deaths)
			}
			if ro && !bytes.Equal(r.dev.data, make([]byte, 1<<20)) {
				t.Error(c.name, "changed a read-only disk")
			}
		}
	}
}

// TestManySegments sends the largest requests that are served, and one that is larger.
func TestManySegments(t *testing.T) {
	for _, n := range []int{1, abi.MaxDevSegs, abi.MaxDevSegs + 1} {
		r := newRaw(t, false)
		virtioblk.Header{Type: virtioblk.TypeOut}.Encode(r.mem[rawData:])
		read := []ring.Segment{{Addr: rawData, Len: 16}}
		for i := range n {
			put32(r.mem[rawData+512+512*i:], uint32(i+1))
			read = append(read, ring.Segment{Addr: rawData + 512 + 512*uint64(i), Len: 512})
		}
		if err := r.drv.Add(read, []ring.Segment{{Addr: rawData + 100, Len: 1}}, 0); err != nil {
			t.Fatal(err)
		}
		r.drv.Publish()
		r.mem[rawData+100] = 0xee
		r.s.Round()
		want := virtioblk.StatusOK
		if n > abi.MaxDevSegs {
			want = virtioblk.StatusIOErr
		}
		if got := r.mem[rawData+100]; got != want {
			t.Errorf("%d segments: status %d", n, got)
		}
		if want == virtioblk.StatusOK && !bytes.Equal(r.dev.data[:512*n], r.mem[rawData+512:][:512*n]) {
			t.Errorf("%d segments: data differs", n)
		}
	}
}

// TestBadChains checks that a client that breaks the rules is no longer served, and that others are.
func TestBadChains(t *testing.T) {
	seg := func(addr uint64, n uint32) []ring.Segment { return []ring.Segment{{Addr: addr, Len: n}} }
	for name, c := range map[string]struct{ read, write []ring.Segment }{
		"short header":       {seg(rawData, 15), seg(rawData, 1)},
		"no header":          {nil, seg(rawData, 512)},
		"no status":          {seg(rawData, 16), nil},
		"outside":            {seg(rawData, 16), seg(4<<20, 1)},
		"across the end":     {seg(4<<20-8, 16), seg(rawData, 1)},
		"wraps":              {seg(math.MaxUint64-7, 16), seg(rawData, 1)},
		"enormous":           {seg(rawData, math.MaxUint32-1), seg(rawData, 1)},
		"too many (descs)":   {many(abi.MaxDevSegs + 100), seg(rawData, 1)},
		"status is outside":  {seg(rawData, 16), append(seg(rawData, 512), seg(1<<40, 1)...)},
		"data below address": {append(seg(rawData, 16), seg(math.MaxUint64-100, 512)...), seg(rawData, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw(t, false)
			if err := r.drv.Add(c.read, c.write, 0); err != nil {
				t.Fatal(err)
			}
			r.drv.Publish()
			r.s.Round()
			if len(r.s.Deaths) != 1 || r.s.Deaths[0].ID != 1 {
				t.Fatalf("deaths: %v", r.s.Deaths)
			}
			if n := r.s.Round(); n != 0 || len(r.s.Deaths) != 1 {
				t.Error("still served")
			}
			r.s.Detach(1)
			r.s.Detach(1)
		})
	}
}

func many(n int) (s []ring.Segment) {
	for range n {
		s = append(s, ring.Segment{Addr: rawData, Len: 16})
	}
	return s
}

// TestScribbler lets a client overwrite its rings and buffers with noise while another one works: the server
// neither fails nor lets anything through, and the other client sees nothing of it.
func TestScribbler(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dev := newMemDevice(testSize)
	good := newRig(t, 1, 16, 256<<10, testSize)
	s, stop := start(t, dev, testSize, good)
	for i := range 300 {
		// Attach and detach belong to the server's goroutine, so it is stopped meanwhile.
		stop()
		bad := newRigQuiet(t, rnd)
		bad.id = uint64(100 + i)
		if err := s.Attach(bad.client(t)); err != nil && !errors.Is(err, ring.ErrLog) {
			t.Fatal(err)
		}
		for range 3 {
			scribble(bad, rnd)
			s.Round()
		}
		s.Detach(bad.id)
		s.Deaths = nil
		stop = run(t, s)
		p := make([]byte, 4096)
		fill(p, 5, uint64(i+1))
		if _, err := good.disk.WriteAt(p, 5*4096); err != nil {
			t.Fatal(err)
		}
		if _, err := good.disk.ReadAt(p, 5*4096); err != nil {
			t.Fatal(err)
		}
		if v, err := version(p, 5); err != nil || v != uint64(i+1) {
			t.Fatal(v, err)
		}
	}
	stop()
}

// newRigQuiet returns a client with small random rings; its disk is not used.
func newRigQuiet(t *testing.T, rnd *rand.Rand) *rig {
	r := newRig(t, 1, 8, 64<<10, testSize)
	r.readOnly = true // what it gets through by chance must not harm the other
	if rnd.IntN(2) == 0 {
		r.features &^= ring.FeatureIndirect | ring.FeatureEventIdx
	}
	return r
}

// scribble puts noise that looks like requests, and plain noise, into the client's memory and its log.
func scribble(r *rig, rnd *rand.Rand) {
	l := abi.QueueAt(0, 8, 0)
	mem := r.mem.Rings
	for i := range uint64(8) {
		d := mem[l.Desc+16*i:]
		addr := rnd.Uint64N(uint64(len(mem)) + 4096)
		if rnd.IntN(2) == 0 {
			addr = abi.BuffersAt + rnd.Uint64N(uint64(len(r.mem.Buffers))+4096)
		}
		if rnd.IntN(10) == 0 {
			addr = rnd.Uint64()
		}
		for k := range 8 {
			d[k] = byte(addr >> (8 * k))
		}
		put32(d[8:], uint32(rnd.Uint64N(1<<(1+rnd.Uint64N(32)))))
		put32(d[12:], rnd.Uint32N(8)|rnd.Uint32N(9)<<16)
	}
	for i := range uint64(8) {
		mem[l.Avail+4+2*i] = byte(rnd.Uint32N(9))
	}
	mem[l.Avail+2] += byte(rnd.Uint32N(10))
	for k := range 50 {
		part := mem
		if k%2 == 0 {
			part = r.mem.Buffers
		}
		h := part[rnd.Uint64N(uint64(len(part)-16)):]
		virtioblk.Header{Type: rnd.Uint32N(16), Sector: rnd.Uint64N(20000)}.Encode(h)
	}
	if rnd.IntN(4) == 0 {
		r.logs[rnd.IntN(len(r.logs))] = byte(rnd.Uint32())
	}
}

// FuzzRequest feeds the planner requests of any content and division. Whatever it plans lies on the disk; the
// device panics otherwise.
func FuzzRequest(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 1}, uint16(513), uint16(3), false)
	f.Add([]byte{11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8}, uint16(1), uint16(7), true)
	f.Add([]byte{13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0, 0, 1, 0, 0, 0}, uint16(1), uint16(16), false)
	f.Fuzz(func(t *testing.T, readable []byte, room, cut uint16, readOnly bool) {
		c := ring.Chain{ReadableBytes: uint32(len(readable)), WritableBytes: uint32(room)}
		split := func(b []byte) (s [][]byte) {
			n := max(int(cut), 1)
			for len(b) > n {
				s, b = append(s, b[:n:n]), b[n:]
			}
			if len(b) > 0 {
				s = append(s, b)
			}
			return s
		}
		c.Readable, c.Writable = split(readable), split(make([]byte, room))
		var w work
		if w.req.Parse(&c) != nil {
			return
		}
		dev := newMemDevice(64 << 10)
		l := limits{sectors: 128, readOnly: readOnly, fd: 7}
		ops := w.plan(&l, make([]Op, 0, MaxRanges))
		if len(ops) > MaxRanges || w.count != len(ops) || w.status != virtioblk.StatusOK && len(ops) > 0 {
			t.Fatalf("%d operations, count %d, status %d", len(ops), w.count, w.status)
		}
		for i := range ops {
			if readOnly && ops[i].Kind != abi.DevRead {
				t.Fatalf("operation %d on a read-only disk", ops[i].Kind)
			}
		}
		if len(ops) > 0 {
			dev.Do(ops)
			w.settle(ops)
		}
		w.req.Finish(w.status)
	})
}
