package main

import (
	"runtime"
	"time"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/hv/guest"
)

// Sizes of a window.
const (
	blockBytes = 4 << 10
	partBytes  = 64 << 20 // what is mapped at a time
	partBlocks = partBytes / blockBytes
	maxParts   = 64        // parts that are looked after at a time
	maxCopy    = 16 << 10  // of one read
	maxShared  = 256 << 10 // of one that others wait for
)

// When a window is used. To leave the VM costs about three times as much as the host's work on a first access to a
// mapped page, and some ten times less than that for each request when thirty of them share it.
const (
	mapAfter   = 256 // reads of a part that a mapping could have served, after which it is mapped
	payOff     = 6   // reads of a block in company, after which a first access has paid
	warmAtOnce = 4   // blocks of a large read that are accessed for the first time beside it
	fewCold    = 2   // blocks that are cheaper to access for the first time than to leave the VM for
	cooling    = 10 * time.Second
)

// State of a block.
const (
	countMask = 0x0f // reads by the host, as far as they are counted
	recent    = 0x40 // read since the last cooling
	mapped    = 0x80 // accessed through the mapping
)

// window reads what the host has in its page cache without leaving the VM: it maps the device and copies. It serves
// short reads only, of blocks that the host has read not long ago, so that they are most likely in the page cache still: a
// block that is not stalls the whole driver until the host has read it. Where the device has lost one, the host is asked, and says what the error
// is. It belongs to one goroutine.
type window struct {
	fd    int32
	size  uint64
	parts map[uint64]*part
	clock uint64 // counts uses of parts
	deny  bool   // the host does not let this device be mapped

	mapPart func(fd int32, offset, size uint64) ([]byte, error)
	unmap   func([]byte) error
}

// part is one piece of a device.
type part struct {
	mem    []byte // nil: not mapped
	hits   int    // reads of known blocks while it is not mapped
	used   uint64
	cooled time.Time
	state  [partBlocks]uint8
}

func newWindow(fd int32, size uint64) *window {
	return &window{
		fd: fd, size: size, parts: map[uint64]*part{},
		mapPart: func(fd int32, offset, size uint64) ([]byte, error) { return guest.MapGrant(fd, offset, size, false) },
		unmap:   guest.UnmapGrant,
	}
}

// span is a read that a window may serve.
type span struct {
	p           *part
	first, last uint64 // blocks of p
	cold        int    // blocks that were not yet accessed through the mapping
	counted     bool   // each of these was read often enough
}

// look finds out whether op, a read inside the device, can be served without the host. If not, the host will read it, and
// that is noted.
func (w *window) look(op *serve.Op, now time.Time) (s span, ok bool) {
	n := op.Offset / partBytes
	most := uint64(maxCopy)
	if op.Shared {
		most = maxShared
	}
	if w.deny || op.Length > most || n != (op.Offset+op.Length-1)/partBytes {
		return s, false
	}
	s.p = w.part(n, now)
	s.first, s.last = op.Offset%partBytes/blockBytes, (op.Offset+op.Length-1)%partBytes/blockBytes
	s.counted = true
	known := true
	for b := s.first; b <= s.last; b++ {
		st := s.p.state[b]
		s.p.state[b] = st | recent
		known = known && st != 0
		if st&mapped == 0 {
			s.cold++
			s.counted = s.counted && st&countMask >= payOff
		}
	}
	if !known || s.p.mem == nil && !w.open(s.p, n) {
		s.count()
		return s, false
	}
	return s, true
}

// count notes that the host reads s.
func (s *span) count() {
	for b := s.first; b <= s.last; b++ {
		if s.p.state[b]&countMask < countMask {
			s.p.state[b]++
		}
	}
}

// warm accesses a few of the blocks that were read often enough for the first time, so that the host need not be asked for a large read for
// ever. A block that the device has lost is left to the host.
func (s *span) warm() {
	defer func() {
		if v := recover(); v != nil && !isFault(v) {
			panic(v)
		}
	}()
	n := 0
	for b := s.first; b <= s.last && n < warmAtOnce; b++ {
		if st := s.p.state[b]; st&mapped == 0 && st&countMask >= payOff && b*blockBytes < uint64(len(s.p.mem)) {
			touched += s.p.mem[b*blockBytes]
			s.p.state[b] |= mapped
			n++
		}
	}
}

// touched keeps the compiler from leaving out what warm reads.
var touched byte

// copy performs op, which is s. It reports false when the memory faulted: the device has lost a block, or the client its memory. Precondition:
// debug.SetPanicOnFault.
func (s *span) copy(op *serve.Op) (ok bool) {
	defer func() {
		if v := recover(); v != nil && !isFault(v) {
			panic(v)
		}
	}()
	if s.p.mem == nil {
		return false // it was dropped for another one's fault
	}
	for b := s.first; b <= s.last; b++ {
		s.p.state[b] |= mapped
	}
	from := s.p.mem[op.Offset%partBytes:][:op.Length]
	for _, seg := range op.Segs {
		from = from[copy(seg, from):]
	}
	op.Result = int64(op.Length)
	return true
}

// isFault reports whether a panic was a fault in memory. On engine kvm the Go runtime is not told the address, and takes the fault for one at 0; there are no
// nil pointers in a copy.
func isFault(v any) bool {
	_, known := v.(interface{ Addr() uintptr })
	e, ok := v.(runtime.Error)
	return known || ok && e.Error() == "runtime error: invalid memory address or nil pointer dereference"
}

// part returns part n. Blocks that were not read for long are forgotten in it.
func (w *window) part(n uint64, now time.Time) *part {
	w.clock++
	p := w.parts[n]
	if p == nil {
		if len(w.parts) >= maxParts {
			w.dropOldest()
		}
		p = &part{cooled: now}
		w.parts[n] = p
	}
	p.used = w.clock
	if now.Sub(p.cooled) >= cooling {
		p.cooled = now
		for b, st := range p.state {
			if st&recent == 0 {
				p.state[b] = 0
			} else {
				p.state[b] = st &^ recent
			}
		}
	}
	return p
}

// open maps part n if that is worth it by now, and reports whether it is mapped.
func (w *window) open(p *part, n uint64) bool {
	if p.hits++; p.hits < mapAfter {
		return false
	}
	mem, err := w.mapPart(w.fd, n*partBytes, min(partBytes, w.size-n*partBytes))
	if err != nil {
		w.close()
		w.deny = true
		return false
	}
	p.mem = mem
	return true
}

func (w *window) dropOldest() {
	oldest, at := ^uint64(0), uint64(0)
	for n, p := range w.parts {
		if p.used < oldest {
			oldest, at = p.used, n
		}
	}
	w.drop(at)
}

func (w *window) drop(n uint64) {
	if p := w.parts[n]; p != nil && p.mem != nil {
		_ = w.unmap(p.mem) // a part that stays mapped costs address space only
		p.mem = nil
	}
	delete(w.parts, n)
}

// close unmaps and forgets everything.
func (w *window) close() {
	for n := range w.parts {
		w.drop(n)
	}
}
