package ring

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Segment is one contiguous buffer of a chain, in addresses that the device resolves.
type Segment struct {
	Addr uint64
	Len  uint32 // bytes, at least 1
}

// Completion is a request that the device has used.
type Completion struct {
	Token   uint64 // what Add was given
	Written uint32 // bytes that the device says it wrote, at most the writable bytes of the request
}

// DriverConfig describes the driver's side of a queue.
type DriverConfig struct {
	Queue

	// Base is the index at which both rings start, 0 on a new device.
	Base uint16

	// IndirectTables is the address of an area for indirect tables, Size*IndirectMax*16 bytes long and
	// 16-byte aligned, one table a descriptor. Chains of 2..IndirectMax segments then take one descriptor.
	// Needs FeatureIndirect. IndirectMax 0 means no indirect descriptors.
	IndirectTables uint64
	IndirectMax    uint16

	// UsedReadOnly says that the used ring cannot be written from here. It is zeroes, and Base 0, unless its device is no good.
	UsedReadOnly bool
}

// IndirectBytes returns the length of the area for indirect tables of a queue.
func IndirectBytes(size, max uint16) uint64 { return uint64(size) * uint64(max) * descLen }

// Driver is the side of a queue that offers buffers. It is not safe for concurrent use: one owner at a time.
// All state that it relies on is private; from the device it takes only the used ring, checked.
type Driver struct {
	desc, avail, used []byte
	tables            []byte // indirect tables, or nil
	tablesAddr        uint64
	tableMax          uint32
	size              uint16
	eventIdx          bool

	availIdx  uint16 // next available index to fill
	published uint16 // available index as the device knows it
	lastUsed  uint16 // next used index to consume

	free  uint16   // first free descriptor, valid while nfree > 0
	nfree uint16   // free descriptors
	next  []uint16 // links of the free list and of outstanding chains
	slots []slot   // by head
	err   error    // set once the device has broken a rule
}

// slot is what the driver remembers of an outstanding request.
type slot struct {
	token    uint64
	writable uint32 // bytes
	last     uint16 // last descriptor of the chain
	count    uint16 // descriptors of the chain, 0 when the head is not outstanding
}

// NewDriver initialises the queue's three parts and returns its driver. Precondition: no device is attached
// yet. Errors: ErrConfig, ErrRange.
func NewDriver(m *Memory, c DriverConfig) (*Driver, error) {
	desc, avail, used, err := c.Queue.parts(m)
	if err != nil {
		return nil, err
	}
	d := &Driver{
		desc: desc, avail: avail, used: used, size: c.Size,
		eventIdx: c.Features&FeatureEventIdx != 0,
		next:     make([]uint16, c.Size), slots: make([]slot, c.Size),
	}
	if c.IndirectMax > 0 {
		if c.Features&FeatureIndirect == 0 {
			return nil, fmt.Errorf("%w: indirect tables without FeatureIndirect", ErrConfig)
		}
		n := IndirectBytes(c.Size, c.IndirectMax)
		if n > math.MaxUint32 {
			return nil, fmt.Errorf("%w: %d bytes of indirect tables", ErrConfig, n)
		}
		if d.tables, err = m.Slice(c.IndirectTables, uint32(n)); err != nil {
			return nil, fmt.Errorf("indirect tables at %#x, %d bytes: %w", c.IndirectTables, n, err)
		}
		if c.IndirectTables%descAlign != 0 {
			return nil, fmt.Errorf("%w: indirect tables at %#x are not aligned to %d bytes", ErrConfig, c.IndirectTables, descAlign)
		}
		d.tablesAddr, d.tableMax = c.IndirectTables, uint32(c.IndirectMax)
	}
	if !c.UsedReadOnly {
		clear(used)
		store16(&used[offIdx], c.Base)
		if d.eventIdx {
			// As on a fresh device at index 0: the first request is announced by a kick.
			store16(&used[offRing+8*int(c.Size)], c.Base)
		}
	}
	d.restart(c.Base)
	return d, nil
}

// Restart empties the queue, whatever its device has done to it: nothing is outstanding any more, and no offence stands. Both rings go on from
// the index in the used ring, which the next device is to be given as DeviceConfig.LastAvail, with a log that was reset.
// Precondition: no device is attached. The caller adds again what it wants done still, and rings the device's doorbell.
func (d *Driver) Restart() { d.restart(load16(&d.used[offIdx])) }

func (d *Driver) restart(base uint16) {
	d.availIdx, d.published, d.lastUsed, d.err = base, base, base, nil
	d.free, d.nfree = 0, d.size
	for i := range d.next {
		d.next[i] = uint16(i) + 1 // the last link is never followed: nfree says where the list ends
	}
	clear(d.slots)
	clear(d.desc)
	clear(d.avail)
	store16(&d.avail[offIdx], base)
	if d.eventIdx {
		d.setUsedEvent(base - 1)
	}
}

// Add queues a request: readable segments first, then writable ones. Nothing is visible to the device before
// Publish. It neither blocks nor allocates, and keeps neither slice. Errors: ErrFull when descriptors are
// short for now; ErrChain when the chain can never be carried; the device's offence when it is dead.
func (d *Driver) Add(readable, writable []Segment, token uint64) error {
	if d.err != nil {
		return d.err
	}
	n := len(readable) + len(writable)
	indirect := n > 1 && uint64(n) <= uint64(d.tableMax)
	need := n
	if indirect {
		need = 1
	}
	if n == 0 || need > int(d.size) {
		return ErrChain
	}
	room, ok := chainBytes(readable, writable)
	if !ok {
		return ErrChain
	}
	if need > int(d.nfree) {
		return ErrFull
	}
	head := d.free
	last := head
	if indirect {
		off := uint64(head) * uint64(d.tableMax) * descLen
		size := uint32(n) * descLen
		table := d.tables[off : off+uint64(size)]
		fillTable(table, readable, writable)
		storeDesc(d.desc, uint32(head), descriptor{addr: d.tablesAddr + off, len: size, flags: descIndirect})
	} else {
		last = d.fillDirect(readable, writable)
	}
	d.free = d.next[last]
	d.nfree -= uint16(need)
	d.slots[head] = slot{token: token, writable: room, last: last, count: uint16(need)}
	d.setAvail(d.availIdx, head)
	d.availIdx++
	return nil
}

// chainBytes returns the writable bytes of a chain, and whether its segments are all non-empty and the whole
// is below 4 GiB (virtio 1.2 §2.7.5.2: no chain longer than 2^32 bytes).
func chainBytes(readable, writable []Segment) (uint32, bool) {
	var r, w uint64
	for i := range readable {
		if readable[i].Len == 0 {
			return 0, false
		}
		r += uint64(readable[i].Len)
	}
	for i := range writable {
		if writable[i].Len == 0 {
			return 0, false
		}
		w += uint64(writable[i].Len)
	}
	return uint32(w), r+w <= math.MaxUint32
}

// fillDirect writes the chain into free descriptors, starting with d.free, and returns the last one used.
func (d *Driver) fillDirect(readable, writable []Segment) uint16 {
	i, last, left := d.free, d.free, len(readable)+len(writable)
	put := func(s Segment, flags uint16) {
		left--
		if left > 0 {
			flags |= descNext
		}
		storeDesc(d.desc, uint32(i), descriptor{addr: s.Addr, len: s.Len, flags: flags, next: d.next[i]})
		last, i = i, d.next[i]
	}
	for _, s := range readable {
		put(s, 0)
	}
	for _, s := range writable {
		put(s, descWrite)
	}
	return last
}

// fillTable writes the chain into an indirect table of exactly its length.
func fillTable(table []byte, readable, writable []Segment) {
	n := uint32(len(readable) + len(writable))
	put := func(i uint32, s Segment, flags uint16) {
		e := descriptor{addr: s.Addr, len: s.Len, flags: flags}
		if i+1 < n {
			e.flags |= descNext
			e.next = uint16(i + 1)
		}
		storeDesc(table, i, e)
	}
	for i, s := range readable {
		put(uint32(i), s, 0)
	}
	for i, s := range writable {
		put(uint32(len(readable)+i), s, descWrite)
	}
}

// Publish makes every request added since the last call visible to the device, and reports whether the device
// asked for a kick: ring its doorbell then (virtio 1.2 §2.7.13 Supplying Buffers to The Device).
func (d *Driver) Publish() (kick bool) {
	if d.availIdx == d.published || d.err != nil {
		return false
	}
	old := d.published
	d.published = d.availIdx
	// Release: pairs with the acquire in Device.refresh; chains and ring entries are visible first.
	store16(&d.avail[offIdx], d.published)
	// Pairs with the fence in Device.Arm: either the device's re-check sees our index, or we see its wish.
	fence()
	if d.eventIdx {
		return needEvent(load16(&d.used[offRing+8*int(d.size)]), d.published, old)
	}
	return load16(&d.used[offFlags])&usedNoNotify == 0
}

// Used consumes up to len(done) completions, oldest first, and returns how many. It neither blocks nor
// allocates. Completions before an offence are still delivered; the offence is returned with them and by
// every later call. Errors: ErrPeerIndex, ErrPeerHead, ErrPeerLength.
func (d *Driver) Used(done []Completion) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	// Acquire: pairs with the release in Device.Publish; used elements and data are visible after it.
	idx := load16(&d.used[offIdx])
	ahead := idx - d.lastUsed
	if ahead == 0 {
		return 0, nil
	}
	if ahead > d.published-d.lastUsed {
		return 0, d.fail(fmt.Errorf("%w: used index %d, ours %d, %d outstanding", ErrPeerIndex, idx, d.lastUsed, d.published-d.lastUsed))
	}
	n := min(len(done), int(ahead))
	for k := range n {
		e := binary.LittleEndian.Uint64(d.used[offRing+8*int(d.lastUsed&(d.size-1)):])
		id, written := uint32(e), uint32(e>>32)
		if id >= uint32(d.size) || d.slots[id].count == 0 {
			return k, d.fail(fmt.Errorf("%w: completion of %d, queue size %d", ErrPeerHead, id, d.size))
		}
		s := &d.slots[id]
		if written > s.writable {
			return k, d.fail(fmt.Errorf("%w: %d bytes written, room for %d", ErrPeerLength, written, s.writable))
		}
		done[k] = Completion{Token: s.token, Written: written}
		d.next[s.last] = d.free
		d.free = uint16(id)
		d.nfree += s.count
		s.count = 0
		d.lastUsed++
	}
	return n, nil
}

// Pending reports whether Used would find something. It is cheap enough to poll.
func (d *Driver) Pending() bool {
	return d.err == nil && load16(&d.used[offIdx]) != d.lastUsed
}

// Arm asks the device to ring our doorbell at the next completion, then re-checks the ring. False means that
// a completion raced in and the caller must not sleep (virtio 1.2 §2.7.10 Available Buffer Notification
// Suppression is the device's mirror of this).
func (d *Driver) Arm() (maySleep bool) {
	if d.err != nil {
		return true
	}
	if d.eventIdx {
		d.setUsedEvent(d.lastUsed)
	} else {
		store16(&d.avail[offFlags], 0)
	}
	// Pairs with the fence in Device.Publish: either it sees our wish, or we see its index.
	fence()
	return load16(&d.used[offIdx]) == d.lastUsed
}

// Disarm tells the device that no doorbell is needed, because the caller polls. It is a hint: stray rings may
// still come.
func (d *Driver) Disarm() {
	if d.err != nil {
		return
	}
	if d.eventIdx {
		d.setUsedEvent(d.lastUsed - 1) // just behind: passed again only after 65,536 completions
	} else {
		store16(&d.avail[offFlags], availNoInterrupt)
	}
}

// Rewind prepares the ring for a new device that has no in-flight log and starts at the index it returns
// (vhost-user's SET_VRING_BASE): from there on, the available ring lists every outstanding request once, in
// no particular order. Preconditions: the old device is gone for good, and Used has been drained. Without
// these, requests are lost or done twice. Requests added since the last Publish stay unpublished.
// Errors: the device's offence when it is dead; ErrPeerIndex when completions have not been drained.
func (d *Driver) Rewind() (base uint16, err error) {
	if d.err != nil {
		return 0, d.err
	}
	if load16(&d.used[offIdx]) != d.lastUsed {
		return 0, fmt.Errorf("%w: completions wait to be consumed", ErrPeerIndex)
	}
	unpublished := make(map[uint16]bool)
	for i := d.published; i != d.availIdx; i++ {
		unpublished[binary.LittleEndian.Uint16(d.avail[offRing+2*int(i&(d.size-1)):])] = true
	}
	i := d.lastUsed
	for head := range d.slots {
		if d.slots[head].count != 0 && !unpublished[uint16(head)] {
			d.setAvail(i, uint16(head))
			i++
		}
	}
	return d.lastUsed, nil
}

// Outstanding returns the number of requests added and not yet consumed as completions.
func (d *Driver) Outstanding() int { return int(d.availIdx - d.lastUsed) }

// Free returns the number of free descriptors: a chain takes one a segment, or one in all when indirect.
func (d *Driver) Free() int { return int(d.nfree) }

// Fail stops the use of the queue until Restart, for an offence of the device that only the caller can see. The first offence stands.
func (d *Driver) Fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// Err returns the device's offence, or nil while it has kept the rules.
func (d *Driver) Err() error { return d.err }

func (d *Driver) setAvail(idx, head uint16) {
	binary.LittleEndian.PutUint16(d.avail[offRing+2*int(idx&(d.size-1)):], head)
}

func (d *Driver) setUsedEvent(idx uint16) { store16(&d.avail[offRing+2*int(d.size)], idx) }

func (d *Driver) fail(err error) error {
	d.err = err
	return err
}
