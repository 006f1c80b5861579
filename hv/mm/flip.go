package mm

import (
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
)

// Piece is a run of guest memory, [Start, Start+Size).
type Piece struct{ Start, Size uint64 }

// Code returns the pages that the guest may execute, in order.
func (s *Space) Code() []Piece {
	return s.pieces(func(a *area) bool { return a.prot&ProtExec != 0 && (a.host == nil || a.host.private) })
}

// Data returns the pages of the guest's own that it may write and has touched, in order. Memory that it shares with others is not among them.
func (s *Space) Data() []Piece {
	return s.pieces(func(a *area) bool { return a.prot&ProtWrite != 0 && a.host == nil })
}

// pieces returns what is mapped of the areas for which ok holds.
func (s *Space) pieces(ok func(*area) bool) (list []Piece) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.areas {
		a := &s.areas[i]
		if !ok(a) {
			continue
		}
		_ = s.tables.Visit(a.start, a.end, func(va, _, size uint64) amd64.Action { // fails only where it has to split a page
			if n := len(list); n > 0 && list[n-1].Start+list[n-1].Size == va {
				list[n-1].Size += size
			} else {
				list = append(list, Piece{va, size})
			}
			return amd64.Keep()
		})
	}
	return list
}

// Flip inverts the bits of mask in the byte at addr and returns what it held. Memory that the guest shares with other VMs or with a file's other users is never
// changed: a page of the program gets a copy of its own first. Errors: ErrFault where nothing of the guest's own is mapped.
func (s *Space) Flip(addr uint64, mask byte) (old byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.areas.find(addr)
	pa, _, size := s.tables.Lookup(addr)
	if a == nil || size == 0 || a.host != nil && !a.host.private {
		return 0, ErrFault
	}
	var b []byte
	if a.host == nil {
		if !s.ram.contains(pa) {
			return 0, ErrFault
		}
		b = s.ram.bytes(pa, 1)
	} else {
		// The mapping is private: the write makes a copy of the page, of which KVM is told.
		at := a.offset + addr - a.start
		first := at &^ (page - 1)
		if err := unix.Mprotect(a.host.mem[first:first+page:first+page], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			return 0, err
		}
		b = a.host.mem[at : at+1]
	}
	old = b[0]
	b[0] = old ^ mask
	return old, nil
}

// Take uses up the guest's memory but for `leave` bytes, for good, and returns how many bytes that were.
func (s *Space) Take(leave uint64) (taken uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for size := uint64(len(s.ram.mem)); leave <= size && s.ram.used+page <= size-leave; {
		if _, ok := s.ram.alloc(); !ok {
			break
		}
		taken += page
	}
	return taken
}
