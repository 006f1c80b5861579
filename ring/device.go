package ring

import (
	"encoding/binary"
	"fmt"
	"math"
)

// DefaultMaxSegments bounds a chain when DeviceConfig.MaxSegments is 0. It is what QEMU allows.
const DefaultMaxSegments = 1024

// DeviceConfig describes the device's side of a queue.
type DeviceConfig struct {
	Queue

	// LastAvail is the available index to go on from: 0 on a new queue, SET_VRING_BASE's under vhost-user.
	// A log that is in use knows better and overrides it.
	LastAvail uint16

	// Log, when not nil, records requests in flight, and is recovered first.
	Log *Inflight

	// MaxSegments bounds the segments of a chain, those of its indirect table included. 0 means
	// DefaultMaxSegments.
	MaxSegments int

	// AllowEmpty lets descriptors of length 0 pass; they add no segment. Otherwise they are ErrPeerChain.
	AllowEmpty bool
}

// Device is the side of a queue that uses buffers. It is not safe for concurrent use: one owner at a time.
// Every value that it reads from the queue is loaded once and bounded before use.
type Device struct {
	mem               *Memory
	hint              int // region of the last descriptor
	desc, avail, used []byte
	size              uint16
	eventIdx          bool
	indirect          bool
	allowEmpty        bool
	maxSegments       int

	lastAvail uint16 // next available index to fetch
	seenAvail uint16 // driver's available index as last loaded; every slot before it is readable
	usedIdx   uint16 // next used index to fill
	published uint16 // used index as the driver knows it

	busy     []bool   // by head: popped and not yet pushed
	inFlight int      // heads that are busy
	batch    []uint16 // heads pushed and not yet published
	replay   []uint16 // recovered heads that Pop still has to return
	log      *Inflight
	err      error // set once the driver has broken a rule
}

// NewDevice returns the device of a queue that a driver has initialised, or that another device has left. With
// a log it recovers what that device left in flight; Pop returns those requests first. The device that is gone
// may have published completions without ringing for them: ring the driver's doorbell once.
// Errors: ErrConfig, ErrRange, ErrLog.
func NewDevice(m *Memory, c DeviceConfig) (*Device, error) {
	desc, avail, used, err := c.Queue.parts(m)
	if err != nil {
		return nil, err
	}
	if c.Log != nil && c.Log.size < c.Size {
		return nil, fmt.Errorf("%w: in-flight log for a queue of %d, queue of %d", ErrConfig, c.Log.size, c.Size)
	}
	if c.MaxSegments == 0 {
		c.MaxSegments = DefaultMaxSegments
	}
	d := &Device{
		mem: m, desc: desc, avail: avail, used: used, size: c.Size,
		eventIdx:   c.Features&FeatureEventIdx != 0,
		indirect:   c.Features&FeatureIndirect != 0,
		allowEmpty: c.AllowEmpty, maxSegments: c.MaxSegments,
		lastAvail: c.LastAvail,
		busy:      make([]bool, c.Size),
		batch:     make([]uint16, 0, c.Size),
		log:       c.Log,
	}
	// The used index is the device's own, but it lies in the driver's memory: a driver that changes it
	// harms its own queue and nothing else.
	d.usedIdx = load16(&used[offIdx])
	if d.log != nil {
		heads, fresh, err := d.log.Recover(d.usedIdx)
		if err != nil {
			return nil, err
		}
		if !fresh {
			d.lastAvail = d.usedIdx + uint16(len(heads))
		}
		d.replay, d.inFlight = heads, len(heads)
		for _, h := range heads {
			if h >= d.size {
				return nil, fmt.Errorf("%w: head %d in flight, queue size %d", ErrLog, h, d.size)
			}
			d.busy[h] = true
		}
	}
	d.published, d.seenAvail = d.usedIdx, d.lastAvail
	return d, nil
}

// Pop fetches the next request into c: requests recovered from the log first, then new ones. False means that
// there is none now. It neither blocks nor allocates, beyond growing c. Errors: ErrPeerIndex, ErrPeerHead,
// ErrPeerChain, ErrRange; c is then invalid.
func (d *Device) Pop(c *Chain) (bool, error) {
	if d.err != nil {
		return false, d.err
	}
	if len(d.replay) > 0 {
		head := d.replay[0]
		d.replay = d.replay[1:]
		if err := d.read(head, c); err != nil {
			return false, d.fail(err)
		}
		c.Recovered = true
		return true, nil
	}
	if d.lastAvail == d.seenAvail {
		if more, err := d.refresh(); !more {
			return false, err
		}
	}
	head := binary.LittleEndian.Uint16(d.avail[offRing+2*int(d.lastAvail&(d.size-1)):])
	if head >= d.size || d.busy[head] {
		return false, d.fail(fmt.Errorf("%w: head %d offered, queue size %d", ErrPeerHead, head, d.size))
	}
	if d.log != nil {
		d.log.Begin(head)
	}
	d.lastAvail++
	d.busy[head] = true
	d.inFlight++
	if err := d.read(head, c); err != nil {
		return false, d.fail(err)
	}
	return true, nil
}

// refresh loads the driver's index and bounds it: it can be ahead by no more than the descriptors that are
// not in our hands.
func (d *Device) refresh() (more bool, err error) {
	// Acquire: pairs with the release in Driver.Publish; ring entries and chains are visible after it.
	idx := load16(&d.avail[offIdx])
	if idx == d.lastAvail {
		return false, nil
	}
	if int(idx-d.lastAvail) > int(d.size)-d.inFlight {
		return false, d.fail(fmt.Errorf("%w: available index %d, ours %d, %d in flight, queue size %d",
			ErrPeerIndex, idx, d.lastAvail, d.inFlight, d.size))
	}
	d.seenAvail = idx
	return true, nil
}

// read copies the chain at head into c.
func (d *Device) read(head uint16, c *Chain) error {
	c.reset(head)
	i := uint32(head)
	for n := 0; ; n++ {
		if n >= int(d.size) {
			return fmt.Errorf("%w: loop from head %d", ErrPeerChain, head)
		}
		e := loadDesc(d.desc, i)
		if e.flags&descIndirect != 0 {
			return d.readIndirect(e, c)
		}
		if err := d.addSegment(e, c); err != nil {
			return err
		}
		if e.flags&descNext == 0 {
			return nil
		}
		if i = uint32(e.next); i >= uint32(d.size) {
			return fmt.Errorf("%w: link to descriptor %d, queue size %d", ErrPeerChain, i, d.size)
		}
	}
}

// readIndirect appends the chain in the table that e names. e ends the direct chain (virtio 1.2 §2.7.5.3).
func (d *Device) readIndirect(e descriptor, c *Chain) error {
	n := e.len / descLen
	switch {
	case !d.indirect:
		return fmt.Errorf("%w: indirect descriptor without the feature", ErrPeerChain)
	case e.flags&descNext != 0:
		return fmt.Errorf("%w: indirect descriptor with a link", ErrPeerChain)
	case n == 0 || e.len%descLen != 0 || uint64(n) > uint64(d.maxSegments):
		return fmt.Errorf("%w: indirect table of %d bytes", ErrPeerChain, e.len)
	}
	table, err := d.mem.slice(e.addr, e.len, &d.hint)
	if err != nil {
		return fmt.Errorf("indirect table at %#x, %d bytes: %w", e.addr, e.len, err)
	}
	i := uint32(0)
	for range n {
		e := loadDesc(table, i)
		if e.flags&descIndirect != 0 {
			return fmt.Errorf("%w: indirect descriptor in an indirect table", ErrPeerChain)
		}
		if err := d.addSegment(e, c); err != nil {
			return err
		}
		if e.flags&descNext == 0 {
			return nil
		}
		if i = uint32(e.next); i >= n {
			return fmt.Errorf("%w: link to entry %d of %d", ErrPeerChain, i, n)
		}
	}
	return fmt.Errorf("%w: loop in an indirect table of %d", ErrPeerChain, n)
}

// addSegment appends the memory that e names to c.
func (d *Device) addSegment(e descriptor, c *Chain) error {
	if e.len == 0 {
		if d.allowEmpty {
			return nil
		}
		return fmt.Errorf("%w: empty descriptor", ErrPeerChain)
	}
	if uint64(c.ReadableBytes)+uint64(c.WritableBytes)+uint64(e.len) > math.MaxUint32 {
		return fmt.Errorf("%w: more than 4 GiB", ErrPeerChain)
	}
	if len(c.Readable)+len(c.Writable) >= d.maxSegments {
		return fmt.Errorf("%w: more than %d segments", ErrPeerChain, d.maxSegments)
	}
	b, err := d.mem.slice(e.addr, e.len, &d.hint)
	if err != nil {
		return fmt.Errorf("descriptor at %#x, %d bytes: %w", e.addr, e.len, err)
	}
	if e.flags&descWrite != 0 {
		c.Writable = append(c.Writable, b)
		c.WritableBytes += e.len
		return nil
	}
	if len(c.Writable) > 0 {
		return fmt.Errorf("%w: readable descriptor after a writable one", ErrPeerChain)
	}
	c.Readable = append(c.Readable, b)
	c.ReadableBytes += e.len
	return nil
}

// Push completes the request at head, of which written bytes were written, counted from the first writable
// byte. Requests may be completed in any order. Nothing is visible to the driver before Publish. It panics
// when head was not popped: that is a bug of the caller, never of the peer.
func (d *Device) Push(head uint16, written uint32) {
	if head >= d.size || !d.busy[head] {
		panic(fmt.Sprintf("ring: Push of head %d, which is not in flight", head))
	}
	if d.err != nil {
		return
	}
	d.busy[head] = false
	d.inFlight--
	binary.LittleEndian.PutUint64(d.used[offRing+8*int(d.usedIdx&(d.size-1)):], uint64(head)|uint64(written)<<32)
	d.usedIdx++
	d.batch = append(d.batch, head)
	if d.log != nil {
		d.log.Complete(head)
	}
}

// Publish makes every completion pushed since the last call visible to the driver, and reports whether the
// driver asked for a call: ring its doorbell then (virtio 1.2 §2.7.14 Receiving Used Buffers From The Device).
func (d *Device) Publish() (call bool) {
	if len(d.batch) == 0 || d.err != nil {
		return false
	}
	old := d.published
	d.published = d.usedIdx
	// Release: pairs with the acquire in Driver.Used; data, used elements and the log's batch are visible first.
	store16(&d.used[offIdx], d.published)
	if d.log != nil {
		d.log.Commit(d.published, d.batch)
	}
	d.batch = d.batch[:0]
	// Pairs with the fence in Driver.Arm: either the driver's re-check sees our index, or we see its wish.
	fence()
	if d.eventIdx {
		return needEvent(load16(&d.avail[offRing+2*int(d.size)]), d.published, old)
	}
	return load16(&d.avail[offFlags])&availNoInterrupt == 0
}

// Pending reports whether Pop would find something. It is cheap enough to poll.
func (d *Device) Pending() bool {
	if d.err != nil {
		return false
	}
	return len(d.replay) > 0 || d.seenAvail != d.lastAvail || load16(&d.avail[offIdx]) != d.lastAvail
}

// Arm asks the driver to ring our doorbell at the next request, then re-checks the ring. False means that a
// request raced in and the caller must not sleep (virtio 1.2 §2.7.10 Available Buffer Notification
// Suppression).
func (d *Device) Arm() (maySleep bool) {
	if d.err != nil {
		return true
	}
	if d.eventIdx {
		store16(&d.used[offRing+8*int(d.size)], d.lastAvail)
	} else {
		store16(&d.used[offFlags], 0)
	}
	// Pairs with the fence in Driver.Publish: either the driver sees our wish, or we see its index.
	fence()
	return !d.Pending()
}

// Disarm tells the driver that no doorbell is needed, because the caller polls. It is a hint: stray rings may
// still come.
func (d *Device) Disarm() {
	if d.err != nil {
		return
	}
	if d.eventIdx {
		store16(&d.used[offRing+8*int(d.size)], d.lastAvail-1) // just behind: passed again only after 65,536 requests
	} else {
		store16(&d.used[offFlags], usedNoNotify)
	}
}

// LastAvail returns the available index to go on from, for a successor's DeviceConfig.LastAvail and for
// vhost-user's GET_VRING_BASE. Without a log it is exact only when InFlight is 0.
func (d *Device) LastAvail() uint16 { return d.lastAvail }

// InFlight returns the number of requests that were taken and not yet pushed, recovered ones included.
func (d *Device) InFlight() int { return d.inFlight }

// Err returns the driver's offence, or nil while it has kept the rules.
func (d *Device) Err() error { return d.err }

func (d *Device) fail(err error) error {
	d.err = err
	return err
}
