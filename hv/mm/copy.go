package mm

import "errors"

// ErrFault reports guest memory that the guest itself could not access so (Linux's EFAULT).
var ErrFault = errors.New("mm: bad address")

// bytes returns up to n bytes of host memory behind the guest-virtual addr, to the end of its page, faulting it in
// first. The caller holds s.mu for reading; it may be dropped and taken again in between.
func (s *Space) bytes(addr, n uint64, access Access) ([]byte, error) {
	for try := 0; ; try++ {
		pa, perm, size := s.tables.Lookup(addr)
		if size != 0 && perm&Prot(access).perm() == Prot(access).perm() {
			n = min(n, size-addr&(size-1))
			if s.ram.contains(pa) {
				return s.ram.bytes(pa, n), nil
			}
			a := s.areas.find(addr)
			if a == nil || a.host == nil {
				return nil, ErrFault // the system area is not the guest's
			}
			return a.host.mem[a.offset+addr-a.start:][:min(n, a.end-addr)], nil
		}
		if try == 8 { // another thread keeps taking it away
			return nil, ErrFault
		}
		s.mu.RUnlock()
		err := s.Fault(addr, access)
		s.mu.RLock()
		if errors.Is(err, ErrNoMemory) {
			return nil, err
		}
		if err != nil {
			return nil, ErrFault
		}
	}
}

// each calls f with the host memory behind [addr, addr+n), piece by piece. The pieces stay valid while f runs.
func (s *Space) each(addr, n uint64, access Access, f func([]byte)) (err error) {
	if n > MaxAddress || addr > MaxAddress-n {
		return ErrFault
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	// A mapped file may have been truncated: for a goroutine with debug.SetPanicOnFault that is an error here.
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(interface{ Addr() uintptr }); !ok {
				panic(r)
			}
			err = ErrFault
		}
	}()
	for n > 0 {
		b, err := s.bytes(addr, n, access)
		if err != nil {
			return err
		}
		f(b)
		addr += uint64(len(b))
		n -= uint64(len(b))
	}
	return nil
}

// CopyIn fills b from guest memory at addr. Errors: ErrFault, after which b is in part filled; ErrNoMemory.
func (s *Space) CopyIn(addr uint64, b []byte) error {
	return s.each(addr, uint64(len(b)), Read, func(src []byte) { b = b[copy(b, src):] })
}

// CopyOut writes b to guest memory at addr. Errors as CopyIn.
func (s *Space) CopyOut(addr uint64, b []byte) error {
	return s.each(addr, uint64(len(b)), Write, func(dst []byte) { b = b[copy(dst, b):] })
}

// Segments appends the host memory behind [addr, addr+n) to dst. Until release is called, that memory is not
// reused: a guest that unmaps it meanwhile harms itself at most. Errors: ErrFault, ErrNoMemory.
func (s *Space) Segments(addr, n uint64, write bool, dst [][]byte) (segs [][]byte, release func(), err error) {
	access := Read
	if write {
		access = Write
	}
	s.pin()
	err = s.each(addr, n, access, func(b []byte) {
		if k := len(dst) - 1; k >= 0 && adjacent(dst[k], b) {
			dst[k] = dst[k][: len(dst[k])+len(b) : len(dst[k])+len(b)]
			return
		}
		dst = append(dst, b[:len(b):cap(b)])
	})
	if err != nil {
		s.unpin()
		return dst, nil, err
	}
	return dst, s.unpin, nil
}

// Load32 loads the aligned word at addr atomically. Errors: ErrFault (also if unaligned), ErrNoMemory.
func (s *Space) Load32(addr uint64) (v uint32, err error) {
	err = s.word(addr, Read, func(b []byte) { v = loadWord(b) })
	return v, err
}

// Swap32 replaces the aligned word at addr by val if it is old, atomically, and returns whether it was. Errors as
// Load32.
func (s *Space) Swap32(addr uint64, old, val uint32) (ok bool, err error) {
	err = s.word(addr, Write, func(b []byte) { ok = casWord(b, old, val) })
	return ok, err
}

func (s *Space) word(addr uint64, access Access, f func([]byte)) error {
	if addr&3 != 0 {
		return ErrFault
	}
	return s.each(addr, 4, access, f)
}
