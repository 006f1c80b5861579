package serve

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// memDevice is a Device in memory that records what reached it, and what a power cut would leave.
type memDevice struct {
	mu      sync.Mutex
	data    []byte
	durable []byte // content as of the last flush
	flushes int
	calls   int
	log     []event // when recording
	record  bool
	fail    func(op *Op) int64 // not 0: the operation's result
}

// event is a write or a flush that reached the device.
type event struct {
	flush bool
	off   uint64
	data  []byte
}

func newMemDevice(size int) *memDevice {
	return &memDevice{data: make([]byte, size), durable: make([]byte, size)}
}

func (d *memDevice) Do(ops []Op) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	if len(ops) == 0 || len(ops) > abi.MaxDevBatch {
		panic(fmt.Sprint("batch of ", len(ops)))
	}
	for i := range ops {
		op := &ops[i]
		if d.fail != nil {
			if r := d.fail(op); r != 0 {
				op.Result = r
				continue
			}
		}
		op.Result = d.one(op)
	}
}

func (d *memDevice) one(op *Op) int64 {
	if op.Kind != abi.DevFlush {
		if n := uint64(len(d.data)); op.Offset > n || op.Length > n-op.Offset {
			panic(fmt.Sprintf("operation %d on %d bytes at %d was let through", op.Kind, op.Length, op.Offset))
		}
	}
	at := d.data[op.Offset:]
	switch op.Kind {
	case abi.DevRead, abi.DevWrite:
		if len(op.Segs) > abi.MaxDevSegs {
			panic("too many segments were let through")
		}
		n := 0
		for _, s := range op.Segs {
			if op.Kind == abi.DevRead {
				copy(s, at[n:])
			} else {
				copy(at[n:], s)
				if d.record {
					d.log = append(d.log, event{off: op.Offset + uint64(n), data: append([]byte(nil), at[n:n+len(s)]...)})
				}
			}
			n += len(s)
		}
		if uint64(n) != op.Length {
			panic("length differs from segments")
		}
		return int64(n)
	case abi.DevFlush:
		d.flushes++
		copy(d.durable, d.data)
		if d.record {
			d.log = append(d.log, event{flush: true})
		}
		return 0
	case abi.DevDiscard, abi.DevWriteZeroes:
		clear(at[:op.Length])
		if d.record {
			d.log = append(d.log, event{off: op.Offset, data: make([]byte, op.Length)})
		}
		return 0
	}
	panic("unknown operation")
}

// content returns a copy of n bytes from off on.
func (d *memDevice) content(off, n int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]byte(nil), d.data[off:off+n]...)
}

func (d *memDevice) flushCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushes
}

// rig is a client with its disk, and what a server needs to serve it.
type rig struct {
	mem        guest.Memory
	disk       *guest.Disk
	grant      abi.DiskGrant
	logs       []byte
	kick, call map[int]ring.Doorbell
	features   uint64
	readOnly   bool
	id         uint64
}

func sharedMemory(t testing.TB, size int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	return b // never unmapped: a goroutine of a failed test may still use it
}

func newRig(t testing.TB, queues, queueSize, pool int, size uint64) *rig {
	t.Helper()
	r := &rig{
		grant:    abi.DiskGrant{QueueSize: uint16(queueSize), Queues: uint16(queues)},
		kick:     map[int]ring.Doorbell{},
		call:     map[int]ring.Doorbell{},
		features: guest.DiskFeatures | virtioblk.FeatureFlush,
		id:       1,
	}
	g := r.grant
	r.mem = guest.Split(sharedMemory(t, int(abi.RingsBytes(g.Queues, g.QueueSize)+abi.UsedBytes(g.Queues))+pool), g.Queues, g.QueueSize)
	r.logs = sharedMemory(t, queues*int(ring.InflightBytes(uint16(queueSize))))
	for i := range queues {
		for _, m := range []map[int]ring.Doorbell{r.kick, r.call} {
			b, err := ring.NewDoorbell()
			if err != nil {
				t.Fatal(err)
			}
			m[i] = b
		}
	}
	var config [64]byte
	c := virtioblk.Config{
		Capacity: size / 512, MaxDiscardSectors: 2048, MaxDiscardSegs: 1, MaxWriteZeroSectors: 2048, MaxWriteZeroSegs: 1,
		WriteZeroMayUnmap: 1,
	}
	b := c.Encode()
	copy(config[:], b[:])
	r.grant.Put(&config)
	d, err := guest.NewDisk("d", r.mem, &config, r.readOnly, r.kick, r.call)
	if err != nil {
		t.Fatal(err)
	}
	r.disk = d
	return r
}

// client returns what the next server attaches.
func (r *rig) client(t testing.TB) Client {
	t.Helper()
	m, err := r.mem.Regions()
	if err != nil {
		t.Fatal(err)
	}
	c := Client{ID: r.id, Name: "test", Disk: "disk", ReadOnly: r.readOnly, Features: r.features, Memory: m}
	n := ring.InflightBytes(r.grant.QueueSize)
	for i := range int(r.grant.Queues) {
		c.Queues = append(c.Queues, Queue{
			Queue: abi.QueueAt(i, r.grant.QueueSize, 0), Log: r.logs[uint64(i)*n:][:n:n], Kick: r.kick[i], Call: r.call[i],
		})
	}
	return c
}

// serveUntil runs rounds until stop is rung.
func serveUntil(s *Server, stop ring.Doorbell) {
	s.Watch(stop.FD())
	for {
		wake, err := s.Wait(-1)
		if err != nil {
			panic(err)
		}
		s.Round()
		if wake == ring.WakeWatch {
			return
		}
	}
}

// start serves the rigs on dev in the background; the returned function stops that.
func start(t testing.TB, dev Device, size uint64, rigs ...*rig) (s *Server, stop func()) {
	t.Helper()
	s = New(dev, []Disk{{Name: "disk", FD: 7, Size: size}}, ring.PollerConfig{})
	for _, r := range rigs {
		if err := s.Attach(r.client(t)); err != nil {
			t.Fatal(err)
		}
	}
	return s, run(t, s)
}

// run has a server serve in the background; the returned function stops that.
func run(t testing.TB, s *Server) (stop func()) {
	t.Helper()
	bell, err := ring.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		serveUntil(s, bell)
	}()
	return func() {
		bell.Ring()
		<-done
		s.poller.Unwatch(bell.FD())
		bell.Close()
	}
}

func put32(b []byte, v uint32) { binary.LittleEndian.PutUint32(b, v) }
