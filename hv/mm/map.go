package mm

import (
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
)

// MapAnon maps size bytes of zeroed memory and returns where. addr is a hint, or the place itself when fixed, where
// it replaces what was mapped. Nothing is used until it is touched. Errors: unix.EINVAL, unix.ENOMEM,
// unix.EEXIST (exclusive).
func (s *Space) MapAnon(addr, size uint64, prot Prot, fixed Fixed) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	addr, size, err := s.choose(addr, size, fixed)
	if err != nil {
		return 0, err
	}
	s.areas.insert(area{start: addr, end: addr + size, prot: prot, max: ProtRead | ProtWrite | ProtExec})
	return addr, nil
}

// Fixed says how binding an address is.
type Fixed int

// How binding an address is.
const (
	Hint      Fixed = iota // elsewhere if it is taken
	Replace                // there, replacing what is mapped (MAP_FIXED)
	Exclusive              // there, or EEXIST (MAP_FIXED_NOREPLACE)
)

// choose settles where a new area goes and frees the range if it is to be replaced.
func (s *Space) choose(addr, size uint64, fixed Fixed) (uint64, uint64, error) {
	if size == 0 || size > MaxAddress {
		if size == 0 {
			return 0, 0, unix.EINVAL
		}
		return 0, 0, unix.ENOMEM
	}
	size = (size + page - 1) &^ (page - 1)
	if len(s.areas) >= maxAreas {
		return 0, 0, unix.ENOMEM
	}
	if fixed != Hint {
		if addr&(page-1) != 0 {
			return 0, 0, unix.EINVAL
		}
		if addr < MinAddress || addr > MaxAddress-size {
			return 0, 0, unix.ENOMEM
		}
		if !s.areas.free(addr, addr+size) {
			if fixed == Exclusive {
				return 0, 0, unix.EEXIST
			}
			if err := s.unmap(addr, addr+size); err != nil {
				return 0, 0, err
			}
		}
		return addr, size, nil
	}
	addr = addr &^ (page - 1)
	if addr >= MinAddress && addr <= MaxAddress-size && s.areas.free(addr, addr+size) {
		return addr, size, nil
	}
	align := uint64(page)
	if size >= large {
		align = large
	}
	addr, ok := s.areas.gap(size, align, MinAddress, MaxAddress)
	if !ok {
		return 0, 0, unix.ENOMEM
	}
	return addr, size, nil
}

// Source is host memory to be mapped: Size bytes of FD from Offset on. Key, if not 0, names it, so that a second
// mapping of it shares the first one's memory slot, and for Revoke. max bounds what the guest may do with it.
type Source struct {
	FD     int
	Offset int64
	Size   uint64
	Key    uint64
	Shared bool // writes reach the file; else they are private to this guest
	Max    Prot
}

// MapHost maps [off, off+size) of src, all page-aligned, as MapAnon does.
func (s *Space) MapHost(addr, size uint64, prot Prot, fixed Fixed, src Source, off uint64) (uint64, error) {
	if prot&^src.Max != 0 {
		return 0, unix.EACCES
	}
	whole := (src.Size + page - 1) &^ (page - 1)
	if off&(page-1) != 0 || size == 0 || size > whole || off > whole-(size+page-1)&^(page-1) {
		return 0, unix.EINVAL
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	addr, size, err := s.choose(addr, size, fixed)
	if err != nil {
		return 0, err
	}
	h, err := s.openHost(src.Key, src.FD, src.Offset, whole, src.Shared, src.Max&ProtWrite != 0)
	if err != nil {
		return 0, err
	}
	if have := uint64(len(h.mem)); size > have || off > have-size { // first mapped when it was smaller
		if h.refs == 0 {
			s.dropHost(h)
		}
		return 0, unix.EINVAL
	}
	h.refs++
	s.areas.insert(area{start: addr, end: addr + size, prot: prot, max: src.Max, host: h, offset: off})
	// Mapped at once: it costs a store a page, a fault would cost an exit.
	if prot == 0 {
		return addr, nil
	}
	for done := uint64(0); done < size; {
		va, pa := addr+done, h.gpa+off+done
		if va&(large-1) == 0 && pa&(large-1) == 0 && size-done >= large && s.tables.CanMapLarge(va) {
			err = s.tables.MapLarge(va, pa, prot.perm())
			done += large
		} else {
			err = s.tables.Map(va, pa, prot.perm())
			done += page
		}
		if err != nil {
			s.unmap(addr, addr+size)
			return 0, unix.ENOMEM
		}
	}
	return addr, nil
}

// Unmap removes whatever is mapped in [addr, addr+size). Errors: unix.EINVAL, unix.ENOMEM.
func (s *Space) Unmap(addr, size uint64) error {
	start, end, err := pageRange(addr, size)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unmap(start, end)
}

// pageRange checks [addr, addr+size) and rounds its end up to a page.
func pageRange(addr, size uint64) (start, end uint64, err error) {
	if addr&(page-1) != 0 || size == 0 || addr > MaxAddress || size > MaxAddress-addr {
		return 0, 0, unix.EINVAL
	}
	return addr, addr + (size+page-1)&^(page-1), nil
}

func (s *Space) unmap(start, end uint64) error {
	for _, a := range s.areas.remove(start, end) {
		if err := s.giveUp(a.start, a.end); err != nil {
			return err
		}
		if a.host == nil {
			continue
		}
		// Cutting an area in two made two references of one; count anew.
		h, refs := a.host, 0
		for i := range s.areas {
			if s.areas[i].host == h {
				refs++
			}
		}
		if h.refs = refs; refs == 0 && h.gpa != 0 {
			s.dropHost(h)
			h.gpa = 0
		} else {
			// The memory stays, the translation must not: other areas of it fault it in again.
			_ = unix.Madvise(h.mem[a.offset:][:a.size()], unix.MADV_DONTNEED)
		}
	}
	return nil
}

// release gives RAM pages, which nothing maps any more, back once no host code works on them either.
func (s *Space) release(gone []span) {
	if len(gone) == 0 {
		return
	}
	// Dropped at once, so that the guest cannot reach it any more; again later, so that it is zero. Neighbours go together: a call of the host for each page would be slow.
	runs := join(gone)
	discard := func() {
		for _, r := range runs {
			s.ram.discard(r.pa, r.size)
		}
	}
	free := func() {
		for _, p := range gone {
			s.ram.free(p.pa, p.size)
		}
	}
	discard()
	s.pinMu.Lock()
	wait := s.pins > 0
	if wait {
		s.limbo = append(s.limbo, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			discard()
			free()
		})
	}
	s.pinMu.Unlock()
	if !wait {
		free()
	}
}

// join returns the runs that spans make, as far as neighbours stand beside each other.
func join(list []span) (runs []span) {
	for _, p := range list {
		if n := len(runs); n > 0 && runs[n-1].pa+runs[n-1].size == p.pa {
			runs[n-1].size += p.size
		} else {
			runs = append(runs, p)
		}
	}
	return runs
}

// Protect changes what the guest may do in [addr, addr+size), all of which must be mapped. Errors: unix.EINVAL,
// unix.ENOMEM, unix.EACCES.
func (s *Space) Protect(addr, size uint64, prot Prot) error {
	start, end, err := pageRange(addr, size)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := start; at < end; {
		a := s.areas.find(at)
		if a == nil {
			return unix.ENOMEM
		}
		if prot&^a.max != 0 {
			return unix.EACCES
		}
		at = a.end
	}
	if len(s.areas) >= maxAreas {
		return unix.ENOMEM
	}
	less := false
	for _, a := range s.areas.remove(start, end) {
		err := s.tables.Visit(a.start, a.end, func(_, _, _ uint64) amd64.Action {
			less = less || a.prot&^prot != 0
			return amd64.Protect(prot.perm())
		})
		a.prot = prot
		s.areas.insert(a)
		if err != nil {
			return unix.ENOMEM
		}
	}
	if less {
		s.frames.Flush()
	}
	return nil
}

// Discard zeroes the anonymous memory in [addr, addr+size) and gives its host memory back (MADV_DONTNEED). The
// guest keeps its hold on the RAM, unless it has a reservation or was asked for memory: then what is discarded is not used any more.
func (s *Space) Discard(addr, size uint64) error {
	start, end, err := pageRange(addr, size)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := start; at < end; {
		a := s.areas.find(at)
		if a == nil {
			return unix.ENOMEM
		}
		stop := min(end, a.end)
		switch {
		case a.host != nil:
		case s.gives():
			if err := s.giveUp(at, stop); err != nil {
				return err
			}
		default:
			s.zero(at, stop)
		}
		at = stop
	}
	return nil
}

// zero discards the RAM behind [at, stop), which stays mapped.
func (s *Space) zero(at, stop uint64) {
	for at < stop {
		pa, _, size := s.tables.Lookup(at)
		if size == 0 {
			at += page
			continue
		}
		n := min(size-at&(size-1), stop-at)
		// Join what is contiguous: a call of the host for each page would be slow.
		for at+n < stop {
			next, _, size := s.tables.Lookup(at + n)
			if size == 0 || next != pa+n {
				break
			}
			n += min(size, stop-at-n)
		}
		s.ram.discard(pa, n)
		s.ram.drop(pa, n)
		at += n
	}
}

// giveUp takes the RAM behind [start, end) out of use. What is mapped there stays mapped, and is zero.
func (s *Space) giveUp(start, end uint64) error {
	// The entries go first: a page that is dropped while its entry stands can be touched again at once, and
	// the CPU would keep that translation when the page is given to somebody else.
	var gone []span
	err := s.tables.Visit(start, end, func(_, pa, size uint64) amd64.Action {
		if s.ram.contains(pa) {
			gone = append(gone, span{pa, size})
		}
		return amd64.Unmap()
	})
	s.release(gone)
	if err != nil {
		return unix.ENOMEM
	}
	return nil
}

// Break moves the end of the heap to addr, as brk(2) does, and returns where it is then.
func (s *Space) Break(addr uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if addr < s.brk.start || addr > MaxAddress {
		return s.brk.end
	}
	old, end := (s.brk.end+page-1)&^(page-1), (addr+page-1)&^(page-1)
	switch {
	case end > old:
		if !s.areas.free(old, end) || len(s.areas) >= maxAreas {
			return s.brk.end
		}
		s.areas.insert(area{start: old, end: end, prot: ProtRead | ProtWrite, max: ProtRead | ProtWrite | ProtExec})
	case end < old:
		if s.unmap(end, old) != nil {
			return s.brk.end
		}
	}
	s.brk.end = addr
	return addr
}

// SetBreak sets where the heap starts, empty.
func (s *Space) SetBreak(addr uint64) {
	addr = (addr + page - 1) &^ (page - 1)
	s.brk.start, s.brk.end = addr, addr
}

// Mapped reports whether all of [addr, addr+size) is mapped.
func (s *Space) Mapped(addr, size uint64) bool {
	if size > MaxAddress || addr > MaxAddress-size {
		return false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for at := addr; at < addr+size; {
		a := s.areas.find(at)
		if a == nil {
			return false
		}
		at = a.end
	}
	return true
}

// Remap changes the size of the anonymous area at addr from size to wanted bytes, elsewhere if it may move and must,
// and returns where it is then (mremap(2)).
func (s *Space) Remap(addr, size, wanted uint64, mayMove bool) (uint64, error) {
	start, end, err := pageRange(addr, size)
	if err != nil || wanted == 0 || wanted > MaxAddress {
		return 0, unix.EINVAL
	}
	wanted = (wanted + page - 1) &^ (page - 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.areas.find(start)
	if a == nil || a.end < end || a.host != nil || a.taken {
		return 0, unix.EFAULT
	}
	have := end - start
	switch {
	case wanted == have:
		return start, nil
	case wanted < have:
		return start, s.unmap(start+wanted, end)
	case a.end == end && start <= MaxAddress-wanted && s.areas.free(end, start+wanted):
		s.areas.insert(area{start: end, end: start + wanted, prot: a.prot, max: a.max, own: a.own, cold: a.cold})
		return start, nil
	case !mayMove:
		return 0, unix.ENOMEM
	}
	grown := area{prot: a.prot, max: a.max, cold: a.cold}
	to, _, err := s.choose(0, wanted, Hint)
	if err != nil {
		return 0, err
	}
	grown.start, grown.end = to, to+wanted
	s.areas.insert(grown)
	// The pages move one by one: the tables may hold large ones that do not fit the new place.
	var failed error
	err = s.tables.Visit(start, end, func(va, pa, n uint64) amd64.Action {
		for off := uint64(0); failed == nil && off < n; off += page {
			dst, ok := s.ram.alloc()
			if !ok {
				failed = ErrNoMemory
				break
			}
			copy(s.ram.bytes(dst, page), s.ram.bytes(pa+off, page))
			failed = noMemory(s.tables.Map(to+va-start+off, dst, grown.prot.perm()))
		}
		return amd64.Keep()
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return 0, err
	}
	return to, s.unmap(start, end)
}
