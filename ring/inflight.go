package ring

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// Format of a queue's region in the in-flight log (vhost-user protocol, "Inflight I/O tracking",
// QueueRegionSplit and DescStateSplit): a head, then one entry a descriptor.
const (
	logFeatures  = 0  // u64, 0
	logVersion   = 8  // u16, 1; 0 means never used
	logDescNum   = 10 // u16, entries
	logLastBatch = 12 // u16, head of the list of the last batch
	logUsedIdx   = 14 // u16, used index after the last complete batch
	logEntries   = 16

	logEntryLen = 16
	entInflight = 0 // u8, 0 or 1
	entNext     = 6 // u16, link in the list of the last batch
	entCounter  = 8 // u64, order of fetching

	logFormat = 1 // the version that this code reads and writes
)

// InflightAlign is the alignment of each queue's region in a log for several queues.
const InflightAlign = 64

// InflightBytes returns the length of the log's region for a queue of size descriptors, a multiple of
// InflightAlign. Queue i's region starts at i*InflightBytes(size).
func InflightBytes(size uint16) uint64 {
	return roundUp(logEntries+logEntryLen*uint64(size), InflightAlign)
}

// Inflight is the log of the requests that a device has taken and not yet completed, in memory that outlives
// the device. Its steps are those of the vhost-user protocol, in the order that keeps the log consistent
// when the process dies between any two of them. A Device drives it; it is not safe for concurrent use.
type Inflight struct {
	mem     []byte
	size    uint16
	counter uint64 // next value of the fetch order
}

// NewInflight returns the log in mem for queues of up to size descriptors. A log that is in use has the size
// it was made with. It reads nothing yet: the Device that is given the log recovers it. Errors: ErrConfig when mem is shorter than InflightBytes(size), misaligned, or
// size is invalid.
func NewInflight(mem []byte, size uint16) (*Inflight, error) {
	if !validSize(size) {
		return nil, fmt.Errorf("%w: queue size %d", ErrConfig, size)
	}
	need := InflightBytes(size)
	if uint64(len(mem)) < need || !aligned(mem, 8) {
		return nil, fmt.Errorf("%w: in-flight log of %d bytes, want %d, 8-byte aligned", ErrConfig, len(mem), need)
	}
	return &Inflight{mem: mem[:need:need], size: size}, nil
}

// CountInflight returns how many requests a queue's region of the log says are in flight. It is for those who only look: the content may be anybody's, and
// may be changing. Precondition: the region has InflightBytes of some size.
func CountInflight(region []byte) int {
	n := 0
	for at := logEntries; at+logEntryLen <= len(region); at += logEntryLen {
		if region[at+entInflight] == 1 {
			n++
		}
	}
	return n
}

// InflightHeads returns the heads that a queue's region of the log says are in flight, oldest first, for those who only look; see CountInflight.
func InflightHeads(region []byte) []uint16 {
	type entry struct {
		head  uint16
		order uint64
	}
	var list []entry
	for i, at := 0, logEntries; at+logEntryLen <= len(region) && i < MaxSize; i, at = i+1, at+logEntryLen {
		if e := region[at:][:logEntryLen]; e[entInflight] == 1 {
			list = append(list, entry{uint16(i), binary.LittleEndian.Uint64(e[entCounter:])})
		}
	}
	slices.SortStableFunc(list, func(a, b entry) int { return cmp.Compare(a.order, b.order) })
	heads := make([]uint16, len(list))
	for i, e := range list {
		heads[i] = e.head
	}
	return heads
}

// Recover completes a batch that the last device left half-way, and returns the heads still in flight, oldest
// first. usedIdx is the index that stands in the used ring. A log that was never used is initialised, and
// fresh is true: then the caller knows the next available index, not the log; otherwise that index is
// usedIdx plus the number of heads. Errors: ErrLog; the log is then untouched.
func (l *Inflight) Recover(usedIdx uint16) (heads []uint16, fresh bool, err error) {
	le := binary.LittleEndian
	features, version, num := le.Uint64(l.mem[logFeatures:]), le.Uint16(l.mem[logVersion:]), le.Uint16(l.mem[logDescNum:])
	if version == 0 {
		l.Reset()
		store16(&l.mem[logUsedIdx], usedIdx)
		store16(&l.mem[logDescNum], l.size)
		store16(&l.mem[logVersion], logFormat) // last: a log that is cut short before this is still unused
		return nil, true, nil
	}
	if version != logFormat || features != 0 || num != l.size {
		return nil, false, fmt.Errorf("%w: version %d, features %#x, %d entries for a queue of %d", ErrLog, version, features, num, l.size)
	}
	done, err := l.lastBatch(usedIdx - le.Uint16(l.mem[logUsedIdx:]))
	if err != nil {
		return nil, false, err
	}
	type entry struct {
		counter uint64
		head    uint16
	}
	var live []entry
	for i := range l.size {
		e := l.entry(i)
		switch flag := e[entInflight]; {
		case flag > 1:
			return nil, false, fmt.Errorf("%w: entry %d has flag %d", ErrLog, i, flag)
		case flag == 1 && !done[i]:
			live = append(live, entry{le.Uint64(e[entCounter:]), i})
		}
	}
	slices.SortFunc(live, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.counter, b.counter), cmp.Compare(a.head, b.head))
	})
	for i := range done {
		store8(&l.entry(i)[entInflight], 0)
	}
	store16(&l.mem[logUsedIdx], usedIdx)
	heads = make([]uint16, len(live))
	for k, e := range live {
		heads[k] = e.head
		l.counter = e.counter + 1
	}
	return heads, false, nil
}

// OldestInflight returns the place in the order of fetching of the oldest request that stands as in flight in mem, a copy of the
// log of a queue of size descriptors, which need not be consistent; false when there is none, or when mem is no such log.
func OldestInflight(mem []byte, size uint16) (counter uint64, found bool) {
	if !validSize(size) || uint64(len(mem)) < InflightBytes(size) {
		return 0, false
	}
	l := Inflight{mem: mem, size: size}
	for i := range size {
		e := l.entry(i)
		if n := binary.LittleEndian.Uint64(e[entCounter:]); e[entInflight] == 1 && (!found || n < counter) {
			counter, found = n, true
		}
	}
	return counter, found
}

// lastBatch returns the n heads of the last batch, whose in-flight marks may or may not be cleared already.
func (l *Inflight) lastBatch(n uint16) (map[uint16]bool, error) {
	if n > l.size {
		return nil, fmt.Errorf("%w: last batch of %d in a queue of %d", ErrLog, n, l.size)
	}
	done := make(map[uint16]bool, n)
	i := binary.LittleEndian.Uint16(l.mem[logLastBatch:])
	for range n {
		if i >= l.size || done[i] {
			return nil, fmt.Errorf("%w: last batch links to entry %d", ErrLog, i)
		}
		done[i] = true
		i = binary.LittleEndian.Uint16(l.entry(i)[entNext:])
	}
	return done, nil
}

// Begin records that head was fetched from the available ring.
func (l *Inflight) Begin(head uint16) {
	e := l.entry(head)
	binary.LittleEndian.PutUint64(e[entCounter:], l.counter)
	l.counter++
	store8(&e[entInflight], 1) // release: after the counter
}

// Complete links head into the batch that the next Commit closes. It precedes the used index that covers it.
func (l *Inflight) Complete(head uint16) {
	binary.LittleEndian.PutUint16(l.entry(head)[entNext:], binary.LittleEndian.Uint16(l.mem[logLastBatch:]))
	store16(&l.mem[logLastBatch], head) // release: after the link
}

// Commit closes the batch: the used ring's index is usedIdx now, and batch holds the heads given to Complete
// since the last Commit.
func (l *Inflight) Commit(usedIdx uint16, batch []uint16) {
	for _, head := range batch {
		store8(&l.entry(head)[entInflight], 0)
	}
	store16(&l.mem[logUsedIdx], usedIdx) // release: after the marks
}

// Reset makes the log look never used. For a queue whose rings start anew.
func (l *Inflight) Reset() {
	store16(&l.mem[logVersion], 0)
	clear(l.mem)
	l.counter = 0
}

func (l *Inflight) entry(i uint16) []byte {
	return l.mem[logEntries+logEntryLen*int(i):][:logEntryLen]
}
