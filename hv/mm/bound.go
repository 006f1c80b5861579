package mm

import (
	"fmt"

	"github.com/grailos/grail/arch/amd64"
)

// Usage is how much of its RAM a guest has, in bytes.
type Usage struct {
	Size     uint64
	Bound    uint64 // of Used, once the time to get below it is over
	Reserved uint64 // there is host memory for so much, whether or not it is used
	Used     uint64 // handed out
}

// Usage returns how much of its RAM the guest has.
func (s *Space) Usage() Usage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return Usage{Size: uint64(len(s.ram.mem)), Bound: s.bound, Reserved: s.ram.reserved, Used: s.ram.used}
}

// Ask bounds how much RAM the guest may use and returns how much it uses; from then on what it discards is given back. Until Enforce it may use what it might
// before. A bound is at least what is reserved, and at most the guest's RAM.
func (s *Space) Ask(bound uint64) Usage {
	s.mu.Lock()
	s.bound = min(max(bound&^(page-1), s.ram.reserved), uint64(len(s.ram.mem)))
	s.ram.most = max(s.ram.most, s.bound)
	s.sweep()
	s.mu.Unlock()
	return s.Usage()
}

// Enforce has no more RAM handed out than the bound allows. It reports whether the guest is within it.
func (s *Space) Enforce() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ram.most = s.bound
	return s.ram.used <= s.bound
}

// gives reports whether the guest's discarded memory goes back at once, at the price of a fault when it is used again.
func (s *Space) gives() bool { return s.ram.reserved > 0 || s.bound < uint64(len(s.ram.mem)) }

// sweepBytes is how much is looked at in one go: a bound on the memory that this takes.
const sweepBytes = 256 << 20

// sweep gives back what the guest has discarded earlier and not used since. The caller holds s.mu.
func (s *Space) sweep() {
	s.pinMu.Lock()
	busy := s.pins > 0
	s.pinMu.Unlock()
	if s.ram.dropped == nil || busy { // host code may be writing to it just now
		return
	}
	for i := range s.areas {
		a := &s.areas[i]
		for at := a.start; a.host == nil && at < a.end; {
			to := min(a.end, (at/sweepBytes+1)*sweepBytes)
			s.sweepRange(at, to, a.prot)
			at = to
		}
	}
}

// sweepRange does so for a part of an area.
func (s *Space) sweepRange(start, end uint64, prot Prot) {
	type candidate struct{ va, pa uint64 }
	var list []candidate
	_ = s.tables.Visit(start, end, func(va, pa, size uint64) amd64.Action { // fails only where it has to split a page
		for off := uint64(0); off < size && s.ram.contains(pa); off += page {
			if s.ram.wasDropped(pa + off) {
				list = append(list, candidate{va + off, pa + off})
			}
		}
		return amd64.Keep()
	})
	// Out of the guest's reach first, so that what is zero stays so.
	for i, c := range list {
		if s.tables.Visit(c.va, c.va+page, func(_, _, _ uint64) amd64.Action { return amd64.Unmap() }) != nil {
			list = list[:i]
			break
		}
	}
	if len(list) == 0 {
		return
	}
	s.frames.Flush()
	var gone []span
	for _, c := range list {
		s.ram.undrop(c.pa, page)
		if isZero(s.ram.bytes(c.pa, page)) {
			gone = append(gone, span{c.pa, page})
		} else if err := s.tables.Map(c.va, c.pa, prot.perm()); err != nil {
			panic(fmt.Sprintf("mm: map again: %v", err)) // an invariant: its table is there
		}
	}
	s.release(gone)
}

// isZero reports whether a page is.
func isZero(b []byte) bool {
	var zero [page]byte
	return string(b) == string(zero[:])
}
