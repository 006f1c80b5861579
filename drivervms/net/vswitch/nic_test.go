package vswitch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// native is a native client's port, as the host sees it.
type native struct {
	nic    *guest.NIC
	client Client
}

func newNative(t testing.TB, id uint64, cfg PortConfig, pairs int, size uint16) *native {
	t.Helper()
	g := guest.NetGrant{Config: virtionet.Config{MAC: cfg.MAC, MTU: 1500}, Addr: cfg.Addr, QueueSize: size, Queues: uint16(2 * pairs)}
	var config [64]byte
	g.Put(&config)
	// Never unmapped: a goroutine of a failed test may still use it.
	b, err := unix.Mmap(-1, 0, int(abi.RingsBytes(g.Queues, size)+abi.UsedBytes(g.Queues)+g.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	mem := guest.Split(b, g.Queues, size)
	mm, err := mem.Regions()
	if err != nil {
		t.Fatal(err)
	}
	n := &native{client: Client{ID: id, Config: cfg, Features: guest.NetFeatures, Memory: mm}}
	kick, call := map[int]ring.Doorbell{}, map[int]ring.Doorbell{}
	for i := range 2 * pairs {
		k, err := ring.NewDoorbell()
		if err != nil {
			t.Fatal(err)
		}
		c, err := ring.NewDoorbell()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { k.Close(); c.Close() })
		kick[i], call[i] = k, c
		n.client.Queues = append(n.client.Queues, Queue{Queue: abi.QueueAt(i, size, guest.NetFeatures), Kick: k, Call: c})
	}
	if n.nic, err = guest.NewNIC(cfg.Name, mem, &config, kick, call); err != nil {
		t.Fatal(err)
	}
	return n
}

// serveThem runs a switch until the returned function is called; that returns the switch.
func serveThem(t testing.TB, clients ...*native) (stop func() *Switch) {
	t.Helper()
	s := New(Config{})
	for _, c := range clients {
		if err := s.Attach(c.client); err != nil {
			t.Fatal(err)
		}
	}
	bell, err := ring.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	s.Watch(bell.FD())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			wake, err := s.Wait(-1)
			if err != nil {
				t.Error(err)
				return
			}
			if wake == ring.WakeWatch {
				return
			}
			s.Round()
		}
	}()
	return func() *Switch {
		bell.Ring()
		<-done
		bell.Close()
		return s
	}
}

func (n *native) to(o *native, payload []byte) []byte {
	return udp(o.client.Config.MAC, n.client.Config.MAC, n.client.Config.Addr.Addr(), o.client.Config.Addr.Addr(), 7, 7, payload)
}

// TestNIC: native clients talk through a switch in another goroutine, with doorbells and sleeps, and the switch is replaced
// meanwhile.
func TestNIC(t *testing.T) {
	a, b := newNative(t, 1, portAt(1, 0), 2, 32), newNative(t, 2, portAt(2, 0), 2, 32)
	if a.nic.MAC() != mac(1) || a.nic.MTU() != 1500 || a.nic.Addr() != portAt(1, 0).Addr || len(a.nic.Pairs()) != 2 {
		t.Errorf("%v %v %v", a.nic.MAC(), a.nic.MTU(), a.nic.Addr())
	}
	stop := serveThem(t, a, b)
	const total = 3000
	var wg sync.WaitGroup
	// b answers each frame on the pair by which it came.
	end := make(chan struct{})
	for _, p := range b.nic.Pairs() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			bufs := make([][]byte, 16)
			for i := range bufs {
				bufs[i] = make([]byte, 2000)
			}
			for {
				n, err := p.ReceiveWithin(bufs, 20*time.Millisecond)
				if errors.Is(err, guest.ErrTimeout) {
					select {
					case <-end:
						return
					default:
						continue
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
				for i := range n {
					if _, err := p.Send(b.to(a, bufs[i][42:])); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	p := a.nic.Pairs()[1]
	bufs := [][]byte{make([]byte, 2000)}
	for i := range uint32(total) {
		payload := binary.BigEndian.AppendUint32(make([]byte, int(i)%1400), i)
		for try := 0; ; try++ {
			if _, err := p.Send(a.to(b, payload)); err != nil {
				t.Fatal(err)
			}
			// Without a switch the frame waits in the ring.
			if i%500 == 499 && try == 0 {
				s := stop()
				s.Detach(1)
				s.Detach(2)
				stop = serveThem(t, a, b)
			}
			_, err := p.ReceiveWithin(bufs, time.Second)
			if err == nil && bytes.Equal(bufs[0], b.to(a, payload)) {
				break
			}
			if try > 3 {
				t.Fatalf("frame %d: %v", i, err)
			}
		}
	}
	close(end)
	wg.Wait()
	stop()
	if _, err := p.Send(make([]byte, 13)); !errors.Is(err, guest.ErrFrame) {
		t.Error(err)
	}
	if _, err := p.Send(make([]byte, 1515)); !errors.Is(err, guest.ErrFrame) {
		t.Error(err)
	}
	if _, err := p.ReceiveWithin(bufs, 0); !errors.Is(err, guest.ErrTimeout) {
		t.Error(err)
	}
}

// BenchmarkNIC is two native clients and the switch on three goroutines.
func BenchmarkNIC(b *testing.B) {
	x, y := newNative(b, 1, portAt(1, 0), 1, 256), newNative(b, 2, portAt(2, 0), 1, 256)
	stop := serveThem(b, x, y)
	f := x.to(y, make([]byte, 1400))
	frames := make([][]byte, 32)
	for i := range frames {
		frames[i] = f
	}
	b.SetBytes(int64(len(f)))
	quit := make(chan struct{})
	go func() {
		for {
			select {
			case <-quit:
				return
			default:
				x.nic.Send(frames...)
			}
		}
	}()
	bufs := make([][]byte, 64)
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	b.ResetTimer()
	for n := 0; n < b.N; {
		k, err := y.nic.Receive(bufs)
		if err != nil {
			b.Fatal(err)
		}
		n += k
	}
	b.StopTimer()
	close(quit)
	stop()
}
