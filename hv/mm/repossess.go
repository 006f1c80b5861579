package mm

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
)

// Repossess takes RAM by force until no more than target is used, and returns how much it took. Anonymous mappings are taken: first those
// that the guest has marked with Expendable, then the others, and of each kind those first that hold most RAM; each from its lowest address
// upwards, which is where the youngest pages are. What was there is lost, and an access is ErrTaken until something else is mapped there. Never taken are what was mapped when Seal was
// called, the heap of Break, spare, and what others have granted. That may not be enough.
func (s *Space) Repossess(target uint64, spare []Piece) (taken uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	need := s.ram.used - min(target, s.ram.used)
	type victim struct {
		area
		used uint64
	}
	var list []victim
	for i := range s.areas {
		a := s.areas[i]
		if a.host != nil || a.own || a.taken || a.start < s.brk.end && s.brk.start < a.end {
			continue
		}
		v := victim{area: a}
		_ = s.tables.Visit(a.start, a.end, func(_, _, size uint64) amd64.Action { // fails only where it has to split a page
			v.used += size
			return amd64.Keep()
		})
		if v.used > 0 {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b victim) int {
		if a.cold != b.cold {
			if a.cold {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.used, a.used), cmp.Compare(b.start, a.start))
	})
	for _, v := range list {
		for _, p := range without(Piece{v.start, v.size()}, spare) {
			if need == 0 || len(s.areas) >= maxAreas-2 {
				return taken
			}
			n := s.takePiece(p, need)
			taken += n
			need -= min(n, need)
		}
	}
	return taken
}

// takePiece takes RAM from the start of p on until it has as much as is needed, and returns how much it took.
func (s *Space) takePiece(p Piece, need uint64) (taken uint64) {
	end := p.Start + p.Size
	stop := p.Start
	_ = s.tables.Visit(p.Start, end, func(va, _, size uint64) amd64.Action { // p starts and ends where an area or a page does
		if taken < need {
			stop = va + min(size, (need-taken+page-1)&^(page-1))
			taken += stop - va
		}
		return amd64.Keep()
	})
	if taken == 0 {
		return 0
	}
	for _, a := range s.areas.remove(p.Start, stop) {
		a.taken = true
		s.areas.insert(a)
	}
	_ = s.giveUp(p.Start, stop) // lacking a table for it, a page stays handed out that nothing maps
	return taken
}

// without returns what is left of p, in order.
func without(p Piece, spare []Piece) []Piece {
	left := []Piece{p}
	for _, x := range spare {
		var next []Piece
		for _, l := range left {
			a, b := max(l.Start, x.Start), min(l.Start+l.Size, x.Start+x.Size)
			if a >= b {
				next = append(next, l)
				continue
			}
			if l.Start < a {
				next = append(next, Piece{l.Start, a - l.Start})
			}
			if b < l.Start+l.Size {
				next = append(next, Piece{b, l.Start + l.Size - b})
			}
		}
		left = next
	}
	return left
}

// Taken returns the repossession vector: what was taken by force and has nothing else mapped over it, in order, at most limit pieces, and how many there are in
// all.
func (s *Space) Taken(limit int) (list []Piece, all int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	end := uint64(0)
	for i := range s.areas {
		a := &s.areas[i]
		switch {
		case !a.taken:
			continue
		case all > 0 && a.start == end: // areas that differ in their permissions
			if all <= limit {
				list[all-1].Size += a.size()
			}
		default:
			if all++; all <= limit {
				list = append(list, Piece{a.start, a.size()})
			}
		}
		end = a.end
	}
	return list, all
}

// Seal spares what is mapped now from Repossess for ever: the program's segments and its first stack.
func (s *Space) Seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.areas {
		s.areas[i].own = true
	}
}

// Expendable notes that the guest can do without what is mapped in [addr, addr+size) better than without the rest, or, with false, that it cannot. Errors:
// unix.EINVAL, unix.ENOMEM.
func (s *Space) Expendable(addr, size uint64, yes bool) error {
	start, end, err := pageRange(addr, size)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.areas) >= maxAreas-2 {
		return unix.ENOMEM
	}
	for _, a := range s.areas.remove(start, end) {
		a.cold = yes && a.host == nil
		s.areas.insert(a)
	}
	return nil
}
