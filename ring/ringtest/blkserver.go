package ringtest

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtioblk"
	"golang.org/x/sys/unix"
)

// Disk is what a BlkServer serves. *os.File is one.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// BlkServer is a minimal block device: a vhostuser.Handler that processes its queues in this process, one
// goroutine each. It copies data once and serves requests one after the other: an example and a test bed.
type BlkServer struct {
	Disk    Disk
	Sectors uint64
	NQueues uint16
	ID      string

	// Batch is the number of completions that are published together; 0 means 1.
	Batch int

	mem     *ring.Memory
	maps    [][]byte
	log     []byte
	logSize uint16
	workers map[int]*blkWorker

	mu   sync.Mutex
	errs []error
}

var _ vhostuser.Handler = (*BlkServer)(nil)

// Features implements vhostuser.Handler.
func (s *BlkServer) Features() uint64 {
	return ring.FeatureVersion1 | ring.FeatureEventIdx | ring.FeatureIndirect | virtioblk.FeatureFlush |
		virtioblk.FeatureMultiQueue | virtioblk.FeatureBlockSize | virtioblk.FeatureSegMax
}

// ProtocolFeatures implements vhostuser.Handler.
func (s *BlkServer) ProtocolFeatures() uint64 { return vhostuser.ProtocolSupported }

// Queues implements vhostuser.Handler.
func (s *BlkServer) Queues() uint16 { return max(s.NQueues, 1) }

// Config implements vhostuser.Handler.
func (s *BlkServer) Config(offset, size uint32) ([]byte, error) {
	c := virtioblk.Config{Capacity: s.Sectors, BlockSize: 512, SegMax: 126, NumQueues: s.Queues()}
	space := make([]byte, vhostuser.MaxConfig)
	enc := c.Encode()
	copy(space, enc[:])
	return space[offset : offset+size], nil
}

// SetConfig implements vhostuser.Handler.
func (s *BlkServer) SetConfig(uint32, []byte) error {
	return errors.New("ringtest: configuration is read-only")
}

// SetMemory implements vhostuser.Handler.
func (s *BlkServer) SetMemory(regions []vhostuser.MemRegion) error {
	s.unmap()
	var rs []ring.Region
	for _, r := range regions {
		m, err := unix.Mmap(r.FD, int64(r.Offset), int(r.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("ringtest: map region: %w", err)
		}
		s.maps = append(s.maps, m)
		rs = append(rs, ring.Region{Base: r.GPA, Mem: m})
	}
	var err error
	s.mem, err = ring.NewMemory(rs...)
	return err
}

func (s *BlkServer) unmap() {
	for _, m := range s.maps {
		unix.Munmap(m)
	}
	s.maps, s.mem = nil, nil
}

// SetInflight implements vhostuser.Handler.
func (s *BlkServer) SetInflight(a vhostuser.InflightArea) error {
	if s.log != nil {
		unix.Munmap(s.log)
		s.log = nil
	}
	m, err := unix.Mmap(a.FD, int64(a.Offset), int(a.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("ringtest: map in-flight log: %w", err)
	}
	s.log, s.logSize = m, a.QueueSize
	return nil
}

// Start implements vhostuser.Handler.
func (s *BlkServer) Start(q vhostuser.QueueState) error {
	c := ring.DeviceConfig{Queue: q.Ring, LastAvail: q.LastAvail}
	n := ring.InflightBytes(s.logSize)
	if off := uint64(q.Index) * n; s.log != nil && off+n <= uint64(len(s.log)) {
		l, err := ring.NewInflight(s.log[off:], s.logSize)
		if err != nil {
			return err
		}
		c.Log = l
	}
	dev, err := ring.NewDevice(s.mem, c)
	if err != nil {
		return err
	}
	stop, err := ring.NewDoorbell()
	if err != nil {
		return err
	}
	w := &blkWorker{
		s: s, dev: dev, call: ring.DoorbellOf(q.Call), stop: stop,
		poll: ring.NewPoller(ring.PollerConfig{}), done: make(chan struct{}),
	}
	w.poll.Add(dev, ring.DoorbellOf(q.Kick))
	w.poll.Watch(stop.FD())
	if s.workers == nil {
		s.workers = map[int]*blkWorker{}
	}
	s.workers[q.Index] = w
	go w.run()
	return nil
}

// SetCall implements vhostuser.Handler.
func (s *BlkServer) SetCall(index, call int) error {
	w := s.workers[index]
	w.mu.Lock()
	defer w.mu.Unlock()
	w.call = ring.DoorbellOf(call)
	return w.call.Ring()
}

// Stop implements vhostuser.Handler.
func (s *BlkServer) Stop(index int) (uint16, error) {
	w := s.workers[index]
	delete(s.workers, index)
	w.stop.Ring()
	<-w.done
	w.stop.Close()
	return w.dev.LastAvail(), nil
}

// Disconnected implements vhostuser.Handler.
func (s *BlkServer) Disconnected(error) {
	s.unmap()
	if s.log != nil {
		unix.Munmap(s.log)
		s.log = nil
	}
}

// Errors returns what went wrong with queues so far.
func (s *BlkServer) Errors() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errs
}

type blkWorker struct {
	s    *BlkServer
	dev  *ring.Device
	poll *ring.Poller
	stop ring.Doorbell
	done chan struct{}
	mu   sync.Mutex // guards call
	call ring.Doorbell
}

func (w *blkWorker) run() {
	defer close(w.done)
	var c ring.Chain
	w.ring() // the device before us may have died between completion and call
	for {
		wake, err := w.poll.Wait(-1)
		if err == nil && wake == ring.WakeWatch {
			return
		}
		if err == nil {
			err = w.serve(&c)
		}
		if err != nil {
			w.s.mu.Lock()
			w.s.errs = append(w.s.errs, err)
			w.s.mu.Unlock()
		}
	}
}

func (w *blkWorker) serve(c *ring.Chain) error {
	var r virtioblk.Request
	var result error
	for n := 1; ; n++ {
		ok, err := w.dev.Pop(c)
		if err == nil && ok {
			err = r.Parse(c)
		}
		if err != nil {
			result = err
			break
		}
		if !ok {
			break
		}
		w.dev.Push(r.Head, r.Finish(w.s.do(&r)))
		if n%max(w.s.Batch, 1) == 0 && w.dev.Publish() {
			w.ring()
		}
	}
	if w.dev.Publish() {
		w.ring()
	}
	return result
}

func (w *blkWorker) ring() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.call.Ring()
}

// do performs one request and returns its status.
func (s *BlkServer) do(r *virtioblk.Request) byte {
	switch r.Type {
	case virtioblk.TypeIn, virtioblk.TypeOut:
		if r.DataBytes%virtioblk.SectorSize != 0 || r.Sector > s.Sectors ||
			uint64(r.DataBytes)/virtioblk.SectorSize > s.Sectors-r.Sector {
			return virtioblk.StatusIOErr
		}
		off := int64(r.Sector) * virtioblk.SectorSize
		for _, b := range r.Data {
			var err error
			if r.Type == virtioblk.TypeIn {
				_, err = s.Disk.ReadAt(b, off)
			} else {
				_, err = s.Disk.WriteAt(b, off)
			}
			if err != nil {
				return virtioblk.StatusIOErr
			}
			off += int64(len(b))
		}
		return virtioblk.StatusOK
	case virtioblk.TypeFlush:
		if s.Disk.Sync() != nil {
			return virtioblk.StatusIOErr
		}
		return virtioblk.StatusOK
	case virtioblk.TypeGetID:
		var id [virtioblk.IDBytes]byte
		copy(id[:], s.ID)
		rest := id[:]
		for _, b := range r.Data {
			rest = rest[copy(b, rest):]
		}
		return virtioblk.StatusOK
	}
	return virtioblk.StatusUnsupported
}
