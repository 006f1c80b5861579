package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

func TestOutside(t *testing.T) {
	for name, f := range map[string]func() error{
		"Caps":        func() error { _, err := Caps(); return err },
		"OpenDisk":    func() error { _, err := OpenDisk("d"); return err },
		"Disks":       func() error { _, err := Disks(); return err },
		"OpenChannel": func() error { _, err := OpenChannel(); return err },
		"OpenStatus":  func() error { _, err := OpenStatus(); return err },
	} {
		if err := f(); !errors.Is(err, ErrOutside) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DevIO(make([]abi.DevReq, 1)); err != unix.ENOSYS {
		t.Error(err)
	}
}

func TestChannel(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := NewChannel(fds[0]), NewChannel(fds[1])
	want := abi.Message{Type: abi.MsgDone, ID: 7, Text: "text"}
	if err := a.Send(want); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Receive(); err != nil || got != want {
		t.Fatal(got, err)
	}
	if err := a.Send(abi.Message{Text: strings.Repeat("x", abi.MaxMessage)}); err == nil {
		t.Error("too large a message was sent")
	}
	if _, err := unix.Write(fds[0], []byte("garbage")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(); err == nil || errors.Is(err, ErrChannelClosed) {
		t.Error(err)
	}
	if err := a.Send(want); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Receive(); err != nil || got != want {
		t.Error("garbage was not skipped:", got, err)
	}
	unix.Close(fds[0])
	if _, err := b.Receive(); err != ErrChannelClosed {
		t.Error(err)
	}
	unix.Close(fds[1])
}

func TestStatus(t *testing.T) {
	page := make([]byte, 2*abi.StatusSize)
	s := NewStatus(page[:abi.StatusSize])
	s.Beat()
	s.Beat()
	s.Count(3, 4096)
	le := binary.LittleEndian
	if le.Uint64(page[abi.StatusBeat:]) != 2 || le.Uint64(page[abi.StatusRequests:]) != 3 || le.Uint64(page[abi.StatusBytes:]) != 4096 {
		t.Error(page[:32])
	}
}

// grant is a disk's memory and doorbells.
type grant struct {
	mem        []byte
	g          abi.DiskGrant
	config     [64]byte
	kick, call map[int]ring.Doorbell
}

func newGrant(t testing.TB, queues, queueSize, size int, c virtioblk.Config) *grant {
	t.Helper()
	g := &grant{
		g: abi.DiskGrant{QueueSize: uint16(queueSize), Queues: uint16(queues)}, kick: map[int]ring.Doorbell{}, call: map[int]ring.Doorbell{},
	}
	var err error
	if g.mem, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS); err != nil {
		t.Fatal(err)
	}
	b := c.Encode()
	copy(g.config[:], b[:])
	g.g.Put(&g.config)
	for i := range queues {
		for _, m := range []map[int]ring.Doorbell{g.kick, g.call} {
			if m[i], err = ring.NewDoorbell(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return g
}

func (g *grant) open(readOnly bool) (*Disk, error) {
	return NewDisk("d", g.mem, &g.config, readOnly, g.kick, g.call)
}

func TestNewDisk(t *testing.T) {
	for _, c := range []struct {
		name                    string
		queues, queueSize, size int
		capacity                uint64
		ok                      bool
	}{
		{"usual", 2, 128, 16 << 20, 100, true},
		{"most", abi.MaxDiskQueues, abi.MaxDiskQueueSize, 16 << 20, 100, true},
		{"smallest queue", 1, 1, 64 << 10, 100, true},
		{"small pool", 1, 512, abi.QueueStride + 128<<10, 100, true},
		{"too small a pool", 1, 512, abi.QueueStride + 4096, 100, false},
		{"no queue", 0, 128, 1 << 20, 100, false},
		{"size is no power of two", 1, 100, 1 << 20, 100, false},
		{"size is too large", 1, 1024, 1 << 20, 100, false},
		{"too many queues", 17, 128, 16 << 20, 100, false},
		{"no room for the rings", 4, 128, 4 * abi.QueueStride, 100, false},
		{"absurd capacity", 1, 128, 1 << 20, 1 << 60, false},
	} {
		g := newGrant(t, c.queues, c.queueSize, c.size, virtioblk.Config{Capacity: c.capacity})
		d, err := g.open(false)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil && (d.Size() != int64(c.capacity)*512 || d.MaxBuffer() < poolUnit || d.Depth() < 1 || d.Depth() > c.queues*c.queueSize) {
			t.Errorf("%s: size %d, buffer %d, depth %d", c.name, d.Size(), d.MaxBuffer(), d.Depth())
		}
	}
	g := newGrant(t, 2, 128, 1<<20, virtioblk.Config{Capacity: 8})
	delete(g.call, 1)
	if _, err := g.open(false); err == nil {
		t.Error("a queue without a doorbell was accepted")
	}
}

func TestReadOnly(t *testing.T) {
	g := newGrant(t, 1, 8, 1<<20, virtioblk.Config{Capacity: 8, MaxWriteZeroSegs: 1, MaxDiscardSegs: 1})
	d, err := g.open(true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(make([]byte, 512), 0); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	if err := d.WriteZeroes(0, 512, false); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	if err := d.Discard(0, 512); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	b, err := d.Alloc(512)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Submit(Write, 0, b, 512); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	plain := newGrant(t, 1, 8, 1<<20, virtioblk.Config{Capacity: 8})
	if d, err = plain.open(false); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(0, 512); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if err := d.WriteZeroes(0, 512, false); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// device pops requests and answers them with ok, unless evil does something else.
func (g *grant) device(t testing.TB, queue int) *ring.Device {
	t.Helper()
	m, err := ring.NewMemory(ring.Region{Mem: g.mem})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ring.LayoutOf(g.g.QueueSize)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := ring.NewDevice(m, ring.DeviceConfig{Queue: l.At(g.g.QueueOffset(queue), DiskFeatures)})
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// TestStarved has more callers than requests, with one that never waits itself: everyone is served.
func TestStarved(t *testing.T) {
	g := newGrant(t, 1, 2, 1<<20, virtioblk.Config{Capacity: 1000})
	d, err := g.open(false)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var server sync.WaitGroup
	server.Add(1)
	go func() {
		defer server.Done()
		dev := g.device(t, 0)
		p := ring.NewPoller(ring.PollerConfig{})
		p.Add(dev, g.kick[0])
		var c ring.Chain
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := p.Wait(10 * time.Millisecond); err != nil {
				t.Error(err)
				return
			}
			for {
				ok, err := dev.Pop(&c)
				if err != nil {
					t.Error(err)
				}
				if !ok || err != nil {
					break
				}
				var r virtioblk.Request
				if err := r.Parse(&c); err != nil {
					t.Error(err)
					return
				}
				dev.Push(r.Head, r.Finish(virtioblk.StatusOK))
			}
			if dev.Publish() {
				g.call[0].Ring()
			}
		}
	}()
	var wg sync.WaitGroup
	for range 12 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			p := make([]byte, 4096)
			for i := range 200 {
				if _, err := d.ReadAt(p, int64(i%100)*512); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	close(stop)
	server.Wait()
	if n := d.Rekicks(); n != 0 {
		t.Errorf("rang again %d times", n)
	}
}

// TestHostileDriver lets the driver write noise to the rings and the slots, and ring at random. Callers get
// answers, or an error that says that the queue is broken, and nothing else happens.
func TestHostileDriver(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	broken := 0
	for round := range 60 {
		g := newGrant(t, 1, 8, 256<<10, virtioblk.Config{Capacity: 1000})
		d, err := g.open(false)
		if err != nil {
			t.Fatal(err)
		}
		l, _ := ring.LayoutOf(8)
		results := make(chan error, 4)
		for range 4 {
			go func() {
				p := make([]byte, 5000)
				for i := range 50 {
					var err error
					switch i % 3 {
					case 0:
						_, err = d.ReadAt(p, int64(i)*100)
					case 1:
						_, err = d.WriteAt(p[:4096], int64(i)*512)
					case 2:
						err = d.Flush()
					}
					var re *RequestError
					if err != nil && !errors.As(err, &re) {
						results <- err
						return
					}
				}
				results <- nil
			}()
		}
		for left := 4; left > 0; {
			select {
			case err := <-results:
				left--
				if err != nil {
					broken++
					if !strings.Contains(err.Error(), "broken") {
						t.Errorf("round %d: %v", round, err)
					}
				}
			default:
				// Mostly plausible completions, sometimes plain nonsense.
				idx := binary.LittleEndian.Uint16(g.mem[l.Used+2:])
				for k := range 8 {
					binary.LittleEndian.PutUint32(g.mem[l.Used+4+8*uint64(k):], rnd.Uint32N(9))
					binary.LittleEndian.PutUint32(g.mem[l.Used+8+8*uint64(k):], rnd.Uint32N(5000))
				}
				for range 20 {
					g.mem[g.g.PoolOffset()+rnd.Uint64N(4096)] = byte(rnd.Uint32())
				}
				binary.LittleEndian.PutUint16(g.mem[l.Used+2:], idx+uint16(rnd.Uint32N(3)))
				g.call[0].Ring()
			}
		}
	}
	if broken == 0 {
		t.Error("no queue ever broke: the driver was not hostile")
	}
}

func TestErrorTexts(t *testing.T) {
	e := &RequestError{Kind: virtioblk.TypeOut, Offset: 5, Bytes: 7, Err: ErrUnaligned}
	if s := fmt.Sprint(e); !strings.Contains(s, "write of 7 bytes at 5") || !errors.Is(e, ErrUnaligned) {
		t.Error(s)
	}
	for _, k := range []uint32{0, 1, 4, 8, 11, 13, 99} {
		if kindName(k) == "" {
			t.Error(k)
		}
	}
}
