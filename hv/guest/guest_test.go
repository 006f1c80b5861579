package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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
	mem        Memory
	g          abi.DiskGrant
	config     [64]byte
	kick, call map[int]ring.Doorbell
	disk       *Disk
}

func newGrant(t testing.TB, queues, queueSize, size int, c virtioblk.Config) *grant {
	t.Helper()
	g := &grant{
		g: abi.DiskGrant{QueueSize: uint16(queueSize), Queues: uint16(queues)}, kick: map[int]ring.Doorbell{}, call: map[int]ring.Doorbell{},
	}
	queued, depth := uint16(queues), uint16(queueSize)
	b, err := unix.Mmap(-1, 0, int(abi.RingsBytes(queued, depth)+abi.UsedBytes(queued))+size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	g.mem = Split(b, queued, depth)
	space := c.Encode()
	copy(g.config[:], space[:])
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
	d, err := NewDisk("d", g.mem, &g.config, readOnly, g.kick, g.call)
	g.disk = d
	return d, err
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
		{"small pool", 1, 512, 64 << 10, 100, true},
		{"too small a pool", 1, 512, 4096, 100, false},
		{"no queue", 0, 128, 1 << 20, 100, false},
		{"size is no power of two", 1, 100, 1 << 20, 100, false},
		{"size is too large", 1, 1024, 1 << 20, 100, false},
		{"too many queues", 17, 128, 16 << 20, 100, false},
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
func (g *grant) device(t testing.TB, queue int, lastAvail uint16) *ring.Device {
	t.Helper()
	m, err := g.mem.Regions()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := ring.NewDevice(m, ring.DeviceConfig{Queue: abi.QueueAt(queue, g.g.QueueSize, DiskFeatures), LastAvail: lastAvail})
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// serve answers requests with OK until the returned function is called.
func (g *grant) serve(t testing.TB, lastAvail uint16) (stop func()) {
	t.Helper()
	quit := make(chan struct{})
	var server sync.WaitGroup
	server.Go(func() {
		dev := g.device(t, 0, lastAvail)
		p := ring.NewPoller(ring.PollerConfig{})
		p.Add(dev, g.kick[0])
		var c ring.Chain
		for {
			select {
			case <-quit:
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
	})
	return func() {
		close(quit)
		server.Wait()
	}
}

// TestStarved has more callers than requests, with one that never waits itself: everyone is served.
func TestStarved(t *testing.T) {
	g := newGrant(t, 1, 2, 1<<20, virtioblk.Config{Capacity: 1000})
	d, err := g.open(false)
	if err != nil {
		t.Fatal(err)
	}
	stop := g.serve(t, 0)
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
	stop()
	if n := d.Rekicks(); n != 0 {
		t.Errorf("rang again %d times", n)
	}
}

// TestHostileDriver lets the driver write noise to the used ring and the buffers, and ring at random. Callers wait, or get an answer that says
// what became of one request; when the host has started a new epoch, and an honest driver comes, all of them end.
func TestHostileDriver(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	complaints := 0
	for round := range 40 {
		g := newGrant(t, 1, 8, 256<<10, virtioblk.Config{Capacity: 1000})
		d, err := g.open(false)
		if err != nil {
			t.Fatal(err)
		}
		const callers = 4
		results := make(chan error, callers)
		for range callers {
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
		w := words{g.mem.Rings}
		used := g.mem.Used
		for k := 0; k < 200 && atomic.LoadUint32(w.at(abi.WordComplaint(0))) == 0; k++ {
			// Mostly plausible completions, sometimes plain nonsense.
			idx := binary.LittleEndian.Uint16(used[2:])
			for k := range 8 {
				binary.LittleEndian.PutUint32(used[4+8*k:], rnd.Uint32N(9))
				binary.LittleEndian.PutUint32(used[8+8*k:], rnd.Uint32N(5000))
			}
			for range 20 {
				g.mem.Buffers[rnd.Uint64N(4096)] = byte(rnd.Uint32())
			}
			binary.LittleEndian.PutUint16(used[2:], idx+uint16(rnd.Uint32N(3)))
			g.call[0].Ring()
		}
		if atomic.LoadUint32(w.at(abi.WordComplaint(0))) != 0 {
			complaints++
		}
		stop := g.nextEpoch(t, func() bool { return len(results) == callers })
		for range callers {
			if err := <-results; err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		stop()
	}
	if complaints == 0 {
		t.Error("nobody ever complained: the driver was not hostile")
	}
}

// nextEpoch does what the host does between two drivers when the first one broke a rule, and serves. over tells that nobody will ask for anything
// any more.
func (g *grant) nextEpoch(t testing.TB, over func() bool) (stop func()) {
	t.Helper()
	w := words{g.mem.Rings}
	epoch := atomic.AddUint32(w.at(abi.WordEpoch), 1)
	limit := time.Now().Add(10 * time.Second)
	for atomic.LoadUint32(w.at(abi.WordAck(0))) != epoch && time.Now().Before(limit) {
		g.call[0].Ring()
		runtime.Gosched()
		if over() {
			break // nobody is there to answer
		}
	}
	answered := atomic.LoadUint32(w.at(abi.WordAck(0))) == epoch
	if c := atomic.LoadUint32(w.at(abi.WordComplaint(0))); c != 0 && answered {
		t.Errorf("complaint %d stands in the new epoch", c)
	}
	return g.serve(t, binary.LittleEndian.Uint16(g.mem.Used[2:]))
}

// TestEpochWhileIdle starts a new epoch while nobody asks for anything: the first request that comes answers.
func TestEpochWhileIdle(t *testing.T) {
	g := newGrant(t, 2, 8, 256<<10, virtioblk.Config{Capacity: 1000})
	d, err := g.open(false)
	if err != nil {
		t.Fatal(err)
	}
	stop := g.serve(t, 0)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	stop()
	w := words{g.mem.Rings}
	atomic.AddUint32(w.at(abi.WordEpoch), 1)
	done := make(chan error)
	go func() { done <- d.Flush() }()
	for i := range 2 {
		for atomic.LoadUint32(w.at(abi.WordAck(i))) != 1 {
			runtime.Gosched()
		}
	}
	stop = g.serve(t, binary.LittleEndian.Uint16(g.mem.Used[2:]))
	if err := <-done; err != nil {
		t.Error(err)
	}
	stop()
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
