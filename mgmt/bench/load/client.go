package load

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtioblk"
)

// Client is one queue on one disk, with a fixed slot in shared memory for each request that can be outstanding. It is
// not safe for concurrent use.
type Client struct {
	Features uint64 // negotiated virtio features
	Size     uint64 // of the disk, bytes

	front   *vhostuser.Frontend
	shared  *ring.Shared
	drv     *ring.Driver
	kick    ring.Doorbell
	call    ring.Doorbell // nobody listens; qemu-storage-daemon gives up a queue without one
	slots   int
	apart   int // slots whose data are apart; the others lie on top of these
	slotLen uint32
	heads   uint64 // offset of the slots' headers, headBytes a slot
	data    uint64 // offset of the slots' data
	done    []ring.Completion
}

const (
	// The addresses that the client's memory pretends to lie at, so that no kind of address equals another one.
	baseGPA  = 0x4000_0000
	baseUser = 0x7f00_0000_0000

	queueSize = 128
	deepQueue = 256       // for more slots than that
	dataMost  = 128 << 20 // bytes of data; slots beyond it have the data of others
	headBytes = 64        // header, then the status byte; a cache line of its own
	tableMax  = 4         // descriptors of the longest chain: header, data, status

	// DataAlign is the alignment of each slot's data, so that huge pages can stand behind large ones.
	DataAlign = 4096
)

// Dial connects to the back end at path and starts queue 0 with slots requests of up to slotLen bytes each. The
// back end is told not to ring: the client polls. The caller closes it.
func Dial(ctx context.Context, path string, slots int, slotLen uint32) (_ *Client, err error) {
	if slots < 1 || slots > deepQueue {
		return nil, fmt.Errorf("load: %d slots, expected 1 to %d", slots, deepQueue)
	}
	size := queueSize
	if slots > queueSize {
		size = deepQueue
	}
	l, err := ring.LayoutOf(uint16(size))
	if err != nil {
		return nil, err
	}
	c := &Client{slots: slots, slotLen: slotLen, kick: ring.DoorbellOf(-1), call: ring.DoorbellOf(-1), done: make([]ring.Completion, size)}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	c.heads = l.Bytes + ring.IndirectBytes(uint16(size), tableMax)
	c.data = (c.heads + uint64(slots)*headBytes + DataAlign - 1) &^ (DataAlign - 1)
	c.apart = min(slots, max(1, dataMost/int(slotLen)))
	if c.shared, err = ring.NewShared("grail-bench-load", c.data+uint64(c.apart)*uint64(slotLen)); err != nil {
		return nil, err
	}
	if c.kick, err = ring.NewDoorbell(); err != nil {
		return nil, err
	}
	if c.call, err = ring.NewDoorbell(); err != nil {
		return nil, err
	}
	c.front, err = vhostuser.Dial(ctx, path, vhostuser.Options{
		Features: ring.FeatureIndirect | ring.FeatureEventIdx | virtioblk.FeatureFlush, Require: ring.FeatureVersion1,
	})
	if err != nil {
		return nil, err
	}
	c.Features = c.front.Features()
	capacity, err := c.front.Config(0, 8)
	if err != nil {
		return nil, err
	}
	c.Size = binary.LittleEndian.Uint64(capacity) * virtioblk.SectorSize
	return c, c.start(l)
}

// start makes the queue and hands it over.
func (c *Client) start(l ring.Layout) error {
	m, err := ring.NewMemory(ring.Region{Base: baseGPA, Mem: c.shared.Mem})
	if err != nil {
		return err
	}
	cfg := ring.DriverConfig{Queue: l.At(baseGPA, c.Features)}
	if c.Features&ring.FeatureIndirect != 0 {
		cfg.IndirectTables, cfg.IndirectMax = baseGPA+l.Bytes, tableMax
	}
	if c.drv, err = ring.NewDriver(m, cfg); err != nil {
		return err
	}
	err = c.front.SetMemory([]vhostuser.MemRegion{{
		FD: c.shared.FD(), Size: uint64(len(c.shared.Mem)), GPA: baseGPA, User: baseUser,
	}})
	if err != nil {
		return err
	}
	return c.front.Start(0, vhostuser.QueueSetup{Ring: cfg.Queue, Kick: c.kick, Call: c.call})
}

// Close ends the session and frees the memory.
func (c *Client) Close() {
	if c.front != nil {
		c.front.Close()
	}
	c.kick.Close()
	c.call.Close()
	if c.shared != nil {
		c.shared.Close()
	}
}

// slot returns slot i's data.
func (c *Client) slot(i int) []byte {
	return c.shared.Mem[c.data+uint64(i%c.apart)*uint64(c.slotLen):][:c.slotLen]
}

// submit offers a request of n bytes at offset off on slot i, which is idle.
func (c *Client) submit(i int, typ uint32, off uint64, n uint32) error {
	head := c.heads + uint64(i)*headBytes
	virtioblk.Header{Type: typ, Sector: off / virtioblk.SectorSize}.Encode(c.shared.Mem[head:])
	c.shared.Mem[head+virtioblk.HeaderBytes] = 0xff
	segs := [3]ring.Segment{
		{Addr: baseGPA + head, Len: virtioblk.HeaderBytes},
		{Addr: baseGPA + c.data + uint64(i%c.apart)*uint64(c.slotLen), Len: n},
		{Addr: baseGPA + head + virtioblk.HeaderBytes, Len: virtioblk.StatusBytes},
	}
	if typ == virtioblk.TypeOut {
		return c.drv.Add(segs[:2], segs[2:], uint64(i))
	}
	return c.drv.Add(segs[:1], segs[1:], uint64(i))
}

// status returns the status byte of slot i's last request.
func (c *Client) status(i int) byte {
	return c.shared.Mem[c.heads+uint64(i)*headBytes+virtioblk.HeaderBytes]
}
