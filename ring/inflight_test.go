package ring_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
)

// TestInflightFormat checks every byte of the log against the layout of QueueRegionSplit.
func TestInflightFormat(t *testing.T) {
	for size, want := range map[uint16]uint64{1: 64, 2: 64, 4: 128, 64: 1088, 128: 2112, 1024: 16448} {
		if got := ring.InflightBytes(size); got != want {
			t.Errorf("log of a queue of %d: %d bytes, want %d", size, got, want)
		}
	}
	mem := alignedBytes(128)
	l, err := ring.NewInflight(mem, 4)
	if err != nil {
		t.Fatal(err)
	}
	if heads, fresh, err := l.Recover(9); len(heads) != 0 || !fresh || err != nil {
		t.Fatalf("fresh log: %v %v %v", heads, fresh, err)
	}
	l.Begin(2)
	l.Begin(0)
	l.Begin(3)
	l.Complete(0)
	l.Complete(2)
	l.Commit(11, []uint16{0, 2})
	want := make([]byte, 128)
	le := binary.LittleEndian
	le.PutUint16(want[8:], 1)       // version
	le.PutUint16(want[10:], 4)      // desc_num
	le.PutUint16(want[12:], 2)      // last_batch_head
	le.PutUint16(want[14:], 11)     // used_idx
	le.PutUint64(want[16+8:], 1)    // desc[0].counter
	le.PutUint64(want[16+48+8:], 2) // desc[3].counter
	want[16+48] = 1                 // desc[3].inflight
	for i := range want {
		if mem[i] != want[i] {
			t.Errorf("byte %d is %#x, want %#x", i, mem[i], want[i])
		}
	}
	l.Reset()
	if heads, fresh, err := l.Recover(0); len(heads) != 0 || !fresh || err != nil {
		t.Fatalf("reset log: %v %v %v", heads, fresh, err)
	}
}

func TestInflightRejects(t *testing.T) {
	le := binary.LittleEndian
	for name, edit := range map[string]func(log []byte){
		"version":                   func(b []byte) { le.PutUint16(b[8:], 2) },
		"features":                  func(b []byte) { b[0] = 1 },
		"size":                      func(b []byte) { le.PutUint16(b[10:], 8) },
		"size 0":                    func(b []byte) { le.PutUint16(b[10:], 0) },
		"flag":                      func(b []byte) { b[16] = 2 },
		"batch larger than queue":   func(b []byte) { le.PutUint16(b[14:], 100-5) },
		"batch in the past":         func(b []byte) { le.PutUint16(b[14:], 101) },
		"batch starts out of range": func(b []byte) { le.PutUint16(b[12:], 4); le.PutUint16(b[14:], 99) },
		"batch links out of range":  func(b []byte) { le.PutUint16(b[16+6:], 0xffff); le.PutUint16(b[14:], 98) },
		"batch loops":               func(b []byte) { le.PutUint16(b[16+6:], 0); le.PutUint16(b[14:], 98) },
	} {
		mem := alignedBytes(128)
		le.PutUint16(mem[8:], 1)
		le.PutUint16(mem[10:], 4)
		le.PutUint16(mem[14:], 100)
		edit(mem)
		l, err := ring.NewInflight(mem, 4)
		if err != nil {
			t.Fatal(err)
		}
		if heads, _, err := l.Recover(100); !errors.Is(err, ring.ErrLog) {
			t.Errorf("%s: %v %v", name, heads, err)
		}
	}
	for name, f := range map[string]func() (*ring.Inflight, error){
		"short":      func() (*ring.Inflight, error) { return ring.NewInflight(alignedBytes(127), 4) },
		"misaligned": func() (*ring.Inflight, error) { return ring.NewInflight(alignedBytes(256)[4:], 4) },
		"size 3":     func() (*ring.Inflight, error) { return ring.NewInflight(alignedBytes(256), 3) },
	} {
		if _, err := f(); !errors.Is(err, ring.ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLogLargerThanQueue: a log is made for the device's largest queue, the driver may choose a smaller one.
func TestLogLargerThanQueue(t *testing.T) {
	b := newBed(t, 4, 0, 0, 0, false)
	b.logMem = alignedBytes(int(ring.InflightBytes(16)))
	log := func() *ring.Inflight {
		l, err := ring.NewInflight(b.logMem, 16)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	dev, err := ring.NewDevice(b.m, ring.DeviceConfig{Queue: b.q, Log: log()})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.drv.Add([]ring.Segment{{Addr: b.data, Len: 8}}, nil, 5); err != nil {
		t.Fatal(err)
	}
	b.drv.Publish()
	var c ring.Chain
	if ok, err := dev.Pop(&c); !ok {
		t.Fatal(err)
	}
	if dev, err = ring.NewDevice(b.m, ring.DeviceConfig{Queue: b.q, Log: log()}); err != nil || dev.InFlight() != 1 || dev.LastAvail() != 1 {
		t.Fatalf("recovered: %v, %+v", err, dev)
	}
	b.logMem[16+16*9] = 1 // a head that the queue does not have
	if _, err := ring.NewDevice(b.m, ring.DeviceConfig{Queue: b.q, Log: log()}); !errors.Is(err, ring.ErrLog) {
		t.Fatalf("head out of range: %v", err)
	}
	small, err := ring.NewInflight(b.logMem, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.NewDevice(b.m, ring.DeviceConfig{Queue: b.q, Log: small}); !errors.Is(err, ring.ErrConfig) {
		t.Fatalf("log smaller than the queue: %v", err)
	}
}

// TestTwoCrashes: what one recovery leaves behind must be good enough for the next.
func TestTwoCrashes(t *testing.T) {
	b := newBed(t, 8, 0, 0, 0, true)
	var c ring.Chain
	add := func(n int) {
		t.Helper()
		for range n {
			if err := b.drv.Add([]ring.Segment{{Addr: b.data, Len: 8}}, nil, 0); err != nil {
				t.Fatal(err)
			}
		}
		b.drv.Publish()
	}
	pop := func(recovered bool, heads ...uint16) {
		t.Helper()
		for _, h := range heads {
			if ok, err := b.dev.Pop(&c); !ok || c.Head != h || c.Recovered != recovered {
				t.Fatalf("Pop: %v %v head %d recovered %v, want head %d recovered %v", ok, err, c.Head, c.Recovered, h, recovered)
			}
		}
	}
	add(5)
	pop(false, 0, 1, 2, 3, 4)
	b.dev.Push(0, 0)
	b.dev.Publish()
	b.dev.Push(3, 0)
	b.dev.Push(1, 0)
	// The used index of the batch (3, 1) is out, then the device dies.
	ringtest.NewRaw(b.m, b.q).SetUsedIdx(3)
	b.newDevice(t, 0)
	pop(true, 2, 4)
	// The next one links a completion into a new batch and dies before it is published.
	b.dev.Push(4, 0)
	b.newDevice(t, 0)
	pop(true, 2, 4)
	// A new request on a low head comes after those that were fetched before it.
	if n, err := b.drv.Used(make([]ring.Completion, 8)); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	add(1)
	pop(false, 1)
	b.newDevice(t, 0)
	pop(true, 2, 4, 1)
}

func TestOldestInflight(t *testing.T) {
	const size = 4
	mem := make([]byte, ring.InflightBytes(size))
	want := func(counter uint64, found bool) {
		t.Helper()
		if c, ok := ring.OldestInflight(mem, size); c != counter || ok != found {
			t.Errorf("%d, %t; want %d, %t", c, ok, counter, found)
		}
	}
	want(0, false)
	l, err := ring.NewInflight(mem, size)
	if err != nil {
		t.Fatal(err)
	}
	l.Begin(2)
	l.Begin(0)
	want(0, true)
	l.Complete(2)
	want(0, true)
	l.Commit(1, []uint16{2})
	want(1, true)
	if _, ok := ring.OldestInflight(mem[:len(mem)-1], size); ok {
		t.Error("a log that is too short")
	}
	if _, ok := ring.OldestInflight(mem, 3); ok {
		t.Error("an invalid size")
	}
}
