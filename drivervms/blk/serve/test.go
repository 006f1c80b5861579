package serve

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// Test reads the first sector of every disk as a client would, through a ring, and flushes the disks that can be written. It returns the first error.
// No client is attached.
//
// It is the rehearsal of a take-over as well: the first use of a page of code costs a fault, and so nearly a millisecond of these would be spent while clients
// wait.
func (s *Server) Test() error {
	for _, name := range slices.Sorted(maps.Keys(s.disks)) {
		d := s.disks[name]
		if d.Size >= virtioblk.SectorSize {
			if err := s.testRead(name); err != nil {
				return fmt.Errorf("disk %s: read: %w", name, err)
			}
		}
		if !d.ReadOnly {
			flush := []Op{{FD: d.FD, Kind: abi.DevFlush}}
			if s.dev.Do(flush); flush[0].Result < 0 {
				return fmt.Errorf("disk %s: flush: %s", name, outcome(flush[0].Result))
			}
		}
	}
	return nil
}

// The memory of testRead's client: its ring, then a request's header, status and data.
const (
	testQueue  = 4
	testHeader = 4096
	testStatus = testHeader + virtioblk.HeaderBytes
	testData   = testHeader + virtioblk.SectorSize
	testBytes  = testData + virtioblk.SectorSize
)

// testRead attaches a client in this program's own memory, and reads the first sector for it.
func (s *Server) testRead(disk string) error {
	const id = ^uint64(0) // hv counts attachments from 1 on
	mem := make([]byte, testBytes)
	memory, err := ring.NewMemory(ring.Region{Mem: mem})
	if err != nil {
		return err
	}
	layout, err := ring.LayoutOf(testQueue)
	if err != nil {
		return err
	}
	q := layout.At(0, ring.FeatureVersion1)
	drv, err := ring.NewDriver(memory, ring.DriverConfig{Queue: q})
	if err != nil {
		return err
	}
	requests, bytes := s.Requests, s.Bytes
	err = s.Attach(Client{ID: id, Name: "test", Disk: disk, Features: q.Features, Memory: memory, Queues: []Queue{{
		Queue: q, Log: make([]byte, ring.InflightBytes(testQueue)), Kick: ring.DoorbellOf(-1), Call: ring.DoorbellOf(-1),
	}}})
	if err != nil {
		return err
	}
	defer func() {
		s.Detach(id)
		s.Requests, s.Bytes = requests, bytes
	}()
	virtioblk.Header{Type: virtioblk.TypeIn}.Encode(mem[testHeader:])
	mem[testStatus] = virtioblk.StatusUnsupported
	err = drv.Add([]ring.Segment{{Addr: testHeader, Len: virtioblk.HeaderBytes}},
		[]ring.Segment{{Addr: testData, Len: virtioblk.SectorSize}, {Addr: testStatus, Len: virtioblk.StatusBytes}}, 0)
	if err != nil {
		return err
	}
	drv.Publish()
	s.Round()
	done := make([]ring.Completion, testQueue)
	if n, err := drv.Used(done); n != 1 || err != nil {
		return fmt.Errorf("%d requests of 1 completed: %w", n, err)
	}
	if mem[testStatus] != virtioblk.StatusOK {
		return fmt.Errorf("status %d", mem[testStatus])
	}
	return nil
}

func outcome(result int64) string {
	if result < 0 {
		return unix.Errno(-result).Error()
	}
	return fmt.Sprintf("%d bytes", result)
}
