package ringtest

import (
	"errors"
	"fmt"
	"time"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtioblk"
)

// BlkClient drives one queue of a block device with fixed buffer slots: header, status and data each have their
// place in one shared memory. It allocates nothing after NewBlkClient and is not safe for concurrent use.
type BlkClient struct {
	Kick, Call ring.Doorbell

	shared  *ring.Shared
	cfg     ring.DriverConfig
	drv     *ring.Driver
	poll    *ring.Poller
	slots   int
	slotLen uint32
	heads   uint64 // offset of the slots' headers, 32 bytes a slot: header, status
	data    uint64 // offset of the slots' data
	done    []ring.Completion
}

// Address at which the client's memory pretends to lie: no address of ours equals another kind of address.
const (
	clientGPA  = 0x4000_0000
	clientUser = 0x7f00_0000_0000
)

// NewBlkClient makes the memory for a queue of size descriptors and slots requests of up to slotLen bytes each,
// and the doorbells. With indirect, each request takes one descriptor, otherwise three.
func NewBlkClient(size uint16, slots int, slotLen uint32, base uint16) (*BlkClient, error) {
	l, err := ring.LayoutOf(size)
	if err != nil {
		return nil, err
	}
	const tableMax = 4
	tables := l.Bytes
	c := &BlkClient{slots: slots, slotLen: slotLen, done: make([]ring.Completion, size)}
	c.heads = tables + ring.IndirectBytes(size, tableMax)
	c.data = (c.heads + uint64(slots)*32 + 4095) &^ 4095
	if c.shared, err = ring.NewShared("blkclient", c.data+uint64(slots)*uint64(slotLen)); err != nil {
		return nil, err
	}
	c.cfg = ring.DriverConfig{Queue: l.At(clientGPA, 0), Base: base, IndirectTables: clientGPA + tables, IndirectMax: tableMax}
	if c.Kick, err = ring.NewDoorbell(); err != nil {
		return nil, err
	}
	if c.Call, err = ring.NewDoorbell(); err != nil {
		return nil, err
	}
	return c, nil
}

// Attach gives memory and queue to the back end of f as queue index.
func (c *BlkClient) Attach(f *vhostuser.Frontend, index int) error {
	if err := f.SetMemory([]vhostuser.MemRegion{c.Region()}); err != nil {
		return err
	}
	setup, err := c.Setup(f.Features())
	if err != nil {
		return err
	}
	return f.Start(index, setup)
}

// Region describes the client's memory.
func (c *BlkClient) Region() vhostuser.MemRegion {
	return vhostuser.MemRegion{FD: c.shared.FD(), Size: uint64(len(c.shared.Mem)), GPA: clientGPA, User: clientUser}
}

// Setup makes the driver for the negotiated features and returns what Frontend.Start needs.
func (c *BlkClient) Setup(features uint64) (vhostuser.QueueSetup, error) {
	m, err := ring.NewMemory(ring.Region{Base: clientGPA, Mem: c.shared.Mem})
	if err != nil {
		return vhostuser.QueueSetup{}, err
	}
	cfg := c.cfg
	cfg.Features = features
	if features&ring.FeatureIndirect == 0 {
		cfg.IndirectMax = 0
	}
	if c.drv, err = ring.NewDriver(m, cfg); err != nil {
		return vhostuser.QueueSetup{}, err
	}
	c.poll = ring.NewPoller(ring.PollerConfig{})
	c.poll.Add(c.drv, c.Call)
	return vhostuser.QueueSetup{Ring: cfg.Queue, Base: cfg.Base, Kick: c.Kick, Call: c.Call}, nil
}

// Driver returns the queue's driver.
func (c *BlkClient) Driver() *ring.Driver { return c.drv }

// Data returns slot's buffer.
func (c *BlkClient) Data(slot int) []byte {
	off := c.data + uint64(slot)*uint64(c.slotLen)
	return c.shared.Mem[off : off+uint64(c.slotLen)]
}

// Submit queues a request that uses slot, which must be idle, with n bytes of its buffer.
func (c *BlkClient) Submit(slot int, typ uint32, sector uint64, n uint32) error {
	head := c.heads + uint64(slot)*32
	virtioblk.Header{Type: typ, Sector: sector}.Encode(c.shared.Mem[head:])
	c.shared.Mem[head+virtioblk.HeaderBytes] = 0xff
	segs := [3]ring.Segment{
		{Addr: clientGPA + head, Len: virtioblk.HeaderBytes},
		{Addr: clientGPA + c.data + uint64(slot)*uint64(c.slotLen), Len: n},
		{Addr: clientGPA + head + virtioblk.HeaderBytes, Len: virtioblk.StatusBytes},
	}
	switch {
	case n == 0:
		segs[1] = segs[2]
		return c.drv.Add(segs[:1], segs[1:2], uint64(slot))
	case typ == virtioblk.TypeIn || typ == virtioblk.TypeGetID:
		return c.drv.Add(segs[:1], segs[1:], uint64(slot))
	}
	return c.drv.Add(segs[:2], segs[2:], uint64(slot))
}

// Publish makes submitted requests visible and rings if the device wants that.
func (c *BlkClient) Publish() error {
	if c.drv.Publish() {
		return c.Kick.Ring()
	}
	return nil
}

// ErrStalled reports that no completion came in the given time.
var ErrStalled = errors.New("ringtest: no completion")

// Reap waits for at least one completion and calls done with each slot and its status. The slots are idle then.
// Errors: ErrStalled after timeout; the peer's offence.
func (c *BlkClient) Reap(timeout time.Duration, done func(slot int, status byte)) error {
	for {
		n, err := c.drv.Used(c.done)
		for _, u := range c.done[:n] {
			done(int(u.Token), c.shared.Mem[c.heads+u.Token*32+virtioblk.HeaderBytes])
		}
		if n > 0 || err != nil {
			return err
		}
		wake, err := c.poll.Wait(timeout)
		if err != nil {
			return err
		}
		if wake == ring.WakeTimeout {
			return fmt.Errorf("%w in %v", ErrStalled, timeout)
		}
	}
}

// Close frees memory and doorbells.
func (c *BlkClient) Close() {
	c.Kick.Close()
	c.Call.Close()
	c.shared.Close()
}
