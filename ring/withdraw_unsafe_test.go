package ring_test

import (
	"errors"
	"testing"
	"time"
	"unsafe"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
	"golang.org/x/sys/unix"
)

// withdraw replaces the mapping by fresh zero pages, as a forced revocation does.
func withdraw(t testing.TB, mem []byte) {
	t.Helper()
	// Safe: mem is a whole mapping of ours, and stays mapped at the same place with the same length.
	p, err := unix.MmapPtr(-1, 0, unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED)
	if err != nil || p != unsafe.Pointer(unsafe.SliceData(mem)) {
		t.Fatalf("mapping over: %v", err)
	}
}

// TestWithdrawn takes the memory away from both ends in the middle of a stream of requests, many times. Each
// end may see an offence or nothing at all; it must not fault, hang or complete what was not outstanding.
func TestWithdrawn(t *testing.T) {
	for i := range 60 {
		s, err := ring.NewShared("test", echoBytes(64))
		if err != nil {
			t.Fatal(err)
		}
		e := &echo{mem: s.Mem, size: 64, features: ring.FeatureEventIdx}
		m, q, data := e.queue()
		drv, err := ring.NewDriver(m, ring.DriverConfig{Queue: q})
		if err != nil {
			t.Fatal(err)
		}
		log, err := ring.NewInflight(alignedBytes(int(ring.InflightBytes(64))), 64)
		if err != nil {
			t.Fatal(err)
		}
		dev, err := ring.NewDevice(m, ring.DeviceConfig{Queue: q, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		results := make(chan error, 2)
		going := make(chan struct{}, 2)
		loop := func(step func() error) {
			for n := 0; ; n++ {
				if n == 50+i {
					going <- struct{}{}
				}
				select {
				case <-stop:
					results <- nil
					return
				default:
				}
				if err := step(); err != nil {
					if n < 50+i {
						going <- struct{}{}
					}
					results <- err
					return
				}
			}
		}
		var c ring.Chain
		go loop(func() error {
			if ok, err := dev.Pop(&c); !ok {
				return err
			}
			var b [8]byte
			c.ReadAt(b[:], 0)
			dev.Push(c.Head, uint32(c.WriteAt(b[:], 0)))
			dev.Publish()
			dev.Arm()
			return nil
		})
		done := make([]ring.Completion, 8)
		go loop(func() error {
			err := drv.Add([]ring.Segment{{Addr: data, Len: 8}}, []ring.Segment{{Addr: data + 64, Len: 8}}, 1)
			if err != nil && !errors.Is(err, ring.ErrFull) {
				return err
			}
			drv.Publish()
			drv.Arm()
			_, err = drv.Used(done)
			return err
		})
		<-going
		<-going
		withdraw(t, s.Mem)
		var ended []error
		for len(ended) < 2 {
			select {
			case err := <-results:
				ended = append(ended, err)
			case <-time.After(2 * time.Millisecond): // an end that sees zeros may see nothing to do
				if stop != nil {
					close(stop)
				}
				for len(ended) < 2 {
					ended = append(ended, <-results)
				}
			}
		}
		for _, err := range ended {
			if err != nil && !ringtest.IsPeerError(err) {
				t.Fatalf("strange error: %v", err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
