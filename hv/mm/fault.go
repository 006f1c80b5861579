package mm

import (
	"errors"

	"github.com/grailos/grail/arch/amd64"
)

// Access is what a fault or a copy wants to do.
type Access Prot

// The accesses.
const (
	Read  = Access(ProtRead)
	Write = Access(ProtWrite)
	Exec  = Access(ProtExec)
)

// Errors of an access.
var (
	ErrUnmapped = errors.New("mm: address not mapped")     // SEGV_MAPERR
	ErrDenied   = errors.New("mm: access not permitted")   // SEGV_ACCERR
	ErrBeyond   = errors.New("mm: beyond the mapped file") // SIGBUS
	ErrTaken    = errors.New("mm: memory was taken back")  // SIGBUS, BUS_ADRERR
)

// around is how many pages a fault maps at most, the one that was touched included.
const around = 32

// Fault makes addr accessible, if the guest may access it so. Errors: ErrUnmapped, ErrDenied, ErrTaken, ErrNoMemory.
func (s *Space) Fault(addr uint64, access Access) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault(addr, access)
}

func (s *Space) fault(addr uint64, access Access) error {
	a := s.areas.find(addr)
	if a == nil {
		return ErrUnmapped
	}
	if a.prot&Prot(access) == 0 {
		return ErrDenied
	}
	if a.taken {
		return ErrTaken
	}
	if _, perm, size := s.tables.Lookup(addr); size != 0 && perm&a.prot.perm() == a.prot.perm() {
		return nil // another thread was faster, or the CPU's cached translation is out of date
	}
	if a.host != nil {
		return s.tables.Map(addr&^(page-1), a.host.gpa+a.offset+(addr&^(page-1)-a.start), a.prot.perm())
	}
	if start := addr &^ (large - 1); a.start <= start && start+large <= a.end &&
		s.ram.plenty() && s.tables.CanMapLarge(addr) {
		pa, ok := s.ram.allocLarge()
		if ok {
			err := s.tables.MapLarge(start, pa, a.prot.perm())
			if err != nil {
				s.ram.free(pa, large)
			}
			return noMemory(err)
		}
	}
	return s.faultSmall(a, addr&^(page-1))
}

// Populate maps the pages of [start, end) that can be written and are not mapped yet, as far as memory goes.
func (s *Space) Populate(start, end uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for va := start; va < end; va += page {
		if _, _, size := s.tables.Lookup(va); size == 0 && s.fault(va, Write) != nil {
			return
		}
	}
}

// faultSmall maps the page at addr, and those around it in the same area that are not mapped yet.
func (s *Space) faultSmall(a *area, addr uint64) error {
	window := addr &^ (around*page - 1)
	var fresh span // the pages just given out, as far as they are neighbours in RAM
	defer func() { s.ram.populate(fresh) }()
	for va := max(a.start, window); va < min(a.end, window+around*page); va += page {
		if _, _, size := s.tables.Lookup(va); size != 0 {
			continue
		}
		pa, ok := s.ram.alloc()
		if !ok {
			if va > addr {
				return nil
			}
			va = addr // the neighbours in front are not needed
			if pa, ok = s.ram.alloc(); !ok {
				return ErrNoMemory
			}
		}
		if err := s.tables.Map(va, pa, a.prot.perm()); err != nil {
			s.ram.free(pa, page)
			if va > addr {
				return nil
			}
			return noMemory(err)
		}
		if fresh.pa+fresh.size != pa {
			s.ram.populate(fresh)
			fresh = span{pa: pa}
		}
		fresh.size += page
	}
	return nil
}

// noMemory turns a lack of page tables into the lack of memory that it is to the guest.
func noMemory(err error) error {
	if errors.Is(err, amd64.ErrNoTable) {
		return ErrNoMemory
	}
	return err
}
