package serve

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
)

const testSize = 4 << 20

func TestDisk(t *testing.T) {
	dev := newMemDevice(testSize)
	r := newRig(t, 2, 16, 1<<20, testSize)
	_, stop := start(t, dev, testSize, r)
	defer stop()
	d := r.disk

	if id, err := d.ID(); err != nil || id != "disk" {
		t.Fatalf("ID = %q, %v", id, err)
	}
	if d.Size() != testSize || d.BlockSize() != 512 || d.ReadOnly() {
		t.Fatal(d.Size(), d.BlockSize(), d.ReadOnly())
	}
	big := make([]byte, 3<<20) // many pieces, more than the pool holds
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range big {
		big[i] = byte(rnd.Uint32())
	}
	if n, err := d.WriteAt(big, 512); n != len(big) || err != nil {
		t.Fatal(n, err)
	}
	if !bytes.Equal(dev.content(512, len(big)), big) {
		t.Fatal("data differs on the device")
	}
	if err := d.Flush(); err != nil || dev.flushCount() != 1 {
		t.Fatal(err, dev.flushCount())
	}
	for _, c := range []struct{ off, n int }{
		{512, len(big)}, {513, 1}, {511, 2}, {1, 511}, {700, 300000}, {0, 1}, {1000, 24}, {4095, 4098},
	} {
		p := make([]byte, c.n)
		if n, err := d.ReadAt(p, int64(c.off)); n != c.n || err != nil {
			t.Fatal(c, n, err)
		}
		if !bytes.Equal(p, dev.content(c.off, c.n)) {
			t.Errorf("read of %d at %d differs", c.n, c.off)
		}
	}
	p := make([]byte, 1000)
	if n, err := d.ReadAt(p, testSize-10); n != 10 || err != io.EOF {
		t.Error(n, err)
	}
	if n, err := d.ReadAt(p, testSize); n != 0 || err != io.EOF {
		t.Error(n, err)
	}
	if n, err := d.ReadAt(p[:0], 5); n != 0 || err != nil {
		t.Error(n, err)
	}
	for _, c := range []struct {
		off  int64
		n    int
		want error
	}{{1, 512, guest.ErrUnaligned}, {0, 100, guest.ErrUnaligned}, {testSize, 512, guest.ErrBounds}, {-512, 512, guest.ErrBounds}} {
		if n, err := d.WriteAt(p[:c.n], c.off); n != 0 || !errors.Is(err, c.want) {
			t.Error(c, n, err)
		}
	}
	if err := d.WriteZeroes(512, 2<<20, true); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(dev.content(512, 2<<20), make([]byte, 2<<20)) {
		t.Error("not zero")
	}
	if err := d.Discard(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(0, 100); !errors.Is(err, guest.ErrUnaligned) {
		t.Error(err)
	}
}

// TestModel runs concurrent random requests on disjoint areas against a plain copy of each area.
func TestModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const workers, area = 8, testSize / 8
	dev := newMemDevice(testSize)
	r := newRig(t, 3, 8, 256<<10, testSize)
	_, stop := start(t, dev, testSize, r)
	defer stop()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			model := make([]byte, area)
			base := int64(w * area)
			for i := range 300 {
				off := rnd.Int64N(area/512) * 512
				n := min(rnd.Int64N(40)*512, area-off)
				var err error
				switch rnd.IntN(6) {
				case 0, 1:
					p := model[off : off+n]
					for k := range p {
						p[k] = byte(rnd.Uint32())
					}
					_, err = r.disk.WriteAt(p, base+off)
				case 2, 3, 4:
					off += rnd.Int64N(512)
					n = min(n, area-off)
					p := make([]byte, n)
					_, err = r.disk.ReadAt(p, base+off)
					if err == nil && !bytes.Equal(p, model[off:off+n]) {
						t.Errorf("worker %d, step %d: read of %d at %d differs", w, i, n, off)
						return
					}
				case 5:
					clear(model[off : off+n])
					err = r.disk.WriteZeroes(base+off, n, rnd.IntN(2) == 0)
				}
				if err != nil {
					t.Errorf("worker %d, step %d: %v", w, i, err)
					return
				}
			}
		}()
	}
	wg.Wait()
}

func TestSubmit(t *testing.T) {
	dev := newMemDevice(testSize)
	r := newRig(t, 1, 8, 256<<10, testSize)
	_, stop := start(t, dev, testSize, r)
	defer stop()
	d := r.disk
	buf, err := d.Alloc(8192)
	if err != nil {
		t.Fatal(err)
	}
	var tickets []guest.Ticket
	for i := range d.Depth() - 1 {
		copy(buf.Bytes(), "abc")
		tk, err := d.Submit(guest.Write, int64(i)*8192, buf, 8192)
		if err != nil {
			t.Fatal(err)
		}
		tickets = append(tickets, tk)
	}
	for _, tk := range tickets {
		if err := d.Wait(tk); err != nil {
			t.Fatal(err)
		}
		if err := d.Wait(tk); err != guest.ErrTicket {
			t.Fatal(err)
		}
	}
	if tk, err := d.Submit(guest.Sync, 0, nil, 0); err != nil || d.Wait(tk) != nil {
		t.Fatal(err)
	}
	if _, err := d.Submit(guest.Read, 512, buf, 8193); err == nil {
		t.Error("too long a request was accepted")
	}
	if _, err := d.Submit(guest.Read, testSize-512, buf, 8192); !errors.Is(err, guest.ErrBounds) {
		t.Error(err)
	}
	buf.Free()
	if _, err := d.Alloc(d.MaxBuffer() + 1); err == nil {
		t.Error("too large a buffer was given")
	}
}

func TestDeviceErrors(t *testing.T) {
	dev := newMemDevice(testSize)
	r := newRig(t, 1, 8, 256<<10, testSize)
	var code int64
	dev.fail = func(op *Op) int64 { return code }
	_, stop := start(t, dev, testSize, r)
	defer stop()
	set := func(c int64) {
		dev.mu.Lock()
		code = c
		dev.mu.Unlock()
	}
	p := make([]byte, 1024)
	for _, c := range []struct {
		code int64
		want error
	}{{-5, guest.ErrDevice}, {512, guest.ErrDevice}, {-eopnotsupp, errors.ErrUnsupported}} {
		set(c.code)
		if n, err := r.disk.WriteAt(p, 0); n != 0 || !errors.Is(err, c.want) {
			t.Error(c, n, err)
		}
		if n, err := r.disk.ReadAt(p, 0); n != 0 || !errors.Is(err, c.want) {
			t.Error(c, n, err)
		}
	}
	set(-5)
	if err := r.disk.Flush(); !errors.Is(err, guest.ErrDevice) {
		t.Error(err)
	}
	set(0)
	if _, err := r.disk.WriteAt(p, 0); err != nil {
		t.Error(err)
	}
}

// slowDevice is a memDevice whose flushes wait for permission.
type slowDevice struct {
	*memDevice
	flushing, goOn chan struct{}
}

func (d *slowDevice) Do(ops []Op) {
	if ops[0].Kind == abi.DevFlush {
		d.flushing <- struct{}{}
		<-d.goOn
	}
	d.memDevice.Do(ops)
}

// TestFlushHoldsUpNobody reads and writes from one client while another one's flush is in progress. Flushes
// asked for meanwhile are not covered by it, and share the next one.
func TestFlushHoldsUpNobody(t *testing.T) {
	dev := &slowDevice{newMemDevice(testSize), make(chan struct{}), make(chan struct{})}
	a, b := newRig(t, 1, 8, 256<<10, testSize), newRig(t, 1, 8, 256<<10, testSize)
	b.id = 2
	s, stop := start(t, dev, testSize, a, b)
	flushed := make(chan error, 4)
	go func() { flushed <- a.disk.Flush() }()
	<-dev.flushing
	p := make([]byte, 512)
	for i := range 50 {
		p[0] = byte(i + 1)
		if _, err := b.disk.WriteAt(p, int64(i)*512); err != nil {
			t.Fatal(err)
		}
		if _, err := a.disk.ReadAt(p, int64(i)*512); err != nil || p[0] != byte(i+1) {
			t.Fatal(p[0], err)
		}
	}
	for _, d := range []*guest.Disk{a.disk, b.disk, b.disk} {
		go func() { flushed <- d.Flush() }()
	}
	// A write that comes after them says that they have been taken: one queue is served in order.
	for _, d := range []*guest.Disk{a.disk, b.disk} {
		if _, err := d.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-flushed:
		t.Fatal("a flush was acknowledged before it was done:", err)
	default:
	}
	dev.goOn <- struct{}{}
	if err := <-flushed; err != nil {
		t.Fatal(err)
	}
	for left := 3; left > 0; {
		select {
		case <-dev.flushing:
			dev.goOn <- struct{}{}
		case err := <-flushed:
			left--
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := dev.flushCount(); n > 4 {
		t.Errorf("%d flushes of the device", n)
	}
	if !bytes.Equal(dev.durable[512:1024], dev.data[512:1024]) {
		t.Error("a write is not durable")
	}
	stop()
	s.Close()
}

// TestDetachWaitsForFlush detaches a client whose flush is in progress.
func TestDetachWaitsForFlush(t *testing.T) {
	dev := &slowDevice{newMemDevice(testSize), make(chan struct{}), make(chan struct{})}
	a, b := newRig(t, 1, 8, 256<<10, testSize), newRig(t, 1, 8, 256<<10, testSize)
	b.id = 2
	s, stop := start(t, dev, testSize, a, b)
	flushed := make(chan error, 1)
	go func() { flushed <- a.disk.Flush() }()
	<-dev.flushing
	stop()
	go func() { dev.goOn <- struct{}{} }()
	if last := s.Detach(1); len(last) != 1 || last[0] != 1 {
		t.Error(last)
	}
	if err := <-flushed; err != nil {
		t.Error(err)
	}
	s.Close()
}
