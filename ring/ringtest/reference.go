package ringtest

import (
	"fmt"

	"github.com/grailos/grail/ring"
)

// RefDriver is a driver that is slow and obvious: it keeps nothing but which descriptors are taken, rereads
// everything else from the ring, and moves one request at a time.
type RefDriver struct {
	*Raw
	eventIdx bool
	lastUsed uint16
	told     uint16           // available index at the last Publish
	next     uint16           // available index to be published
	taken    map[uint16]bool  // descriptors of outstanding chains
	chains   map[uint16]chain // by head
}

type chain struct {
	token uint64
	descs []uint16
}

// NewRefDriver initialises the queue, both indices at base.
func NewRefDriver(m *ring.Memory, q ring.Queue, base uint16) *RefDriver {
	r := NewRaw(m, q)
	clear(r.desc)
	clear(r.avail)
	clear(r.used)
	r.SetAvailIdx(base)
	r.SetUsedIdx(base)
	r.SetAvailEvent(base)
	r.SetUsedEvent(base - 1)
	return &RefDriver{
		Raw: r, eventIdx: q.Features&ring.FeatureEventIdx != 0, lastUsed: base, told: base, next: base,
		taken: map[uint16]bool{}, chains: map[uint16]chain{},
	}
}

// Add queues a request as ring.Driver.Add does, without indirect tables. It returns ring.ErrFull when it does
// not fit now.
func (d *RefDriver) Add(readable, writable []ring.Segment, token uint64) error {
	var free []uint16
	for i := range d.Q.Size {
		if !d.taken[i] {
			free = append(free, i)
		}
	}
	n := len(readable) + len(writable)
	if n > int(d.Q.Size) {
		return ring.ErrChain
	}
	if n > len(free) {
		return ring.ErrFull
	}
	free = free[:n]
	for k, i := range free {
		e := Desc{}
		if k < len(readable) {
			e.Addr, e.Len = readable[k].Addr, readable[k].Len
		} else {
			e.Addr, e.Len, e.Flags = writable[k-len(readable)].Addr, writable[k-len(readable)].Len, FlagWrite
		}
		if k+1 < n {
			e.Flags |= FlagNext
			e.Next = free[k+1]
		}
		d.SetDesc(i, e)
		d.taken[i] = true
	}
	d.SetAvail(d.next, free[0])
	d.next++
	d.chains[free[0]] = chain{token, free}
	return nil
}

// Publish publishes, as ring.Driver.Publish does.
func (d *RefDriver) Publish() (kick bool) {
	if d.next == d.told {
		return false
	}
	for i := d.told; i != d.next; i++ { // one by one: does any step pass the event?
		if d.AvailEvent() == i {
			kick = true
		}
	}
	d.told = d.next
	d.SetAvailIdx(d.next)
	if !d.eventIdx {
		return d.UsedFlags()&1 == 0
	}
	return kick
}

// Used consumes completions, as ring.Driver.Used does. It panics when the device breaks a rule.
func (d *RefDriver) Used(done []ring.Completion) (int, error) {
	n := 0
	for ; n < len(done) && d.lastUsed != d.UsedIdx(); n++ {
		id, written := d.Raw.Used(d.lastUsed)
		c, ok := d.chains[uint16(id)]
		if !ok {
			panic(fmt.Sprintf("ringtest: completion of head %d, which is not outstanding", id))
		}
		delete(d.chains, uint16(id))
		for _, i := range c.descs {
			delete(d.taken, i)
		}
		done[n] = ring.Completion{Token: c.token, Written: written}
		d.lastUsed++
	}
	return n, nil
}

// Arm is ring.Driver.Arm.
func (d *RefDriver) Arm() (maySleep bool) {
	if d.eventIdx {
		d.SetUsedEvent(d.lastUsed)
	} else {
		d.SetAvailFlags(0)
	}
	return d.UsedIdx() == d.lastUsed
}

// RefDevice is a device that is slow and obvious.
type RefDevice struct {
	*Raw
	eventIdx  bool
	lastAvail uint16
	next      uint16 // used index to be published
}

// NewRefDevice attaches to a queue whose next available index is base.
func NewRefDevice(m *ring.Memory, q ring.Queue, base uint16) *RefDevice {
	r := NewRaw(m, q)
	return &RefDevice{Raw: r, eventIdx: q.Features&ring.FeatureEventIdx != 0, lastAvail: base, next: r.UsedIdx()}
}

// Pop fetches a request, as ring.Device.Pop does. It panics when the driver breaks a rule.
func (d *RefDevice) Pop(c *ring.Chain) (bool, error) {
	if d.lastAvail == d.AvailIdx() {
		return false, nil
	}
	head := d.Avail(d.lastAvail)
	d.lastAvail++
	*c = ring.Chain{Head: head}
	e := d.Desc(head)
	for steps := 0; ; steps++ {
		if steps > 1<<16 {
			panic("ringtest: loop in a chain")
		}
		if e.Flags&FlagIndirect != 0 {
			table, err := d.Mem.Slice(e.Addr, e.Len)
			if err != nil {
				panic(err)
			}
			for i := 0; ; {
				t := decodeDesc(table[16*i:])
				d.append(c, t)
				if t.Flags&FlagNext == 0 {
					return true, nil
				}
				i = int(t.Next)
			}
		}
		d.append(c, e)
		if e.Flags&FlagNext == 0 {
			return true, nil
		}
		e = d.Desc(e.Next)
	}
}

func (d *RefDevice) append(c *ring.Chain, e Desc) {
	b, err := d.Mem.Slice(e.Addr, e.Len)
	if err != nil {
		panic(err)
	}
	if e.Flags&FlagWrite != 0 {
		c.Writable = append(c.Writable, b)
		c.WritableBytes += e.Len
	} else {
		c.Readable = append(c.Readable, b)
		c.ReadableBytes += e.Len
	}
}

// Push completes a request, as ring.Device.Push does.
func (d *RefDevice) Push(head uint16, written uint32) {
	d.SetUsed(d.next, uint32(head), written)
	d.next++
}

// Publish publishes, as ring.Device.Publish does.
func (d *RefDevice) Publish() (call bool) {
	if d.next == d.UsedIdx() {
		return false
	}
	for i := d.UsedIdx(); i != d.next; i++ {
		if d.UsedEvent() == i {
			call = true
		}
	}
	d.SetUsedIdx(d.next)
	if !d.eventIdx {
		return d.AvailFlags()&1 == 0
	}
	return call
}

// Arm is ring.Device.Arm.
func (d *RefDevice) Arm() (maySleep bool) {
	if d.eventIdx {
		d.SetAvailEvent(d.lastAvail)
	} else {
		d.SetUsedFlags(0)
	}
	return d.AvailIdx() == d.lastAvail
}
