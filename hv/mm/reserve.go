package mm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// reserveStep is how much is prefaulted at a time: some 20 ms of work.
const reserveStep = 64 << 20

// Reserve puts host memory behind bytes of the guest's RAM, rounded up to a multiple of 2 MiB, and keeps it there until the Space is gone: what of it is free is used before the rest.
// progress, if not nil, is told how far it has come. Precondition: no RAM has been handed out. Errors: the host has not got it.
func (s *Space) Reserve(bytes uint64, progress func(done uint64)) error {
	size := uint64(len(s.ram.mem))
	if bytes > size {
		return fmt.Errorf("mm: %d bytes to reserve of %d", bytes, size)
	}
	bytes = (bytes + large - 1) &^ (large - 1)
	for done := uint64(0); done < bytes; {
		n := min(reserveStep, bytes-done)
		if err := s.reserve(done, n); err != nil {
			return fmt.Errorf("the host has no memory for more than %d of %d MiB that are reserved: %w", done>>20, bytes>>20, err)
		}
		done += n
		if progress != nil {
			progress(done)
		}
	}
	return nil
}

// reserve does so for the n bytes of RAM at off.
func (s *Space) reserve(off, n uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.ram
	if err := r.putBy(r.base+off, n); err != nil {
		return err
	}
	for b := int((off+n)/large) - 1; b >= int(off/large); b-- {
		r.blocks[b].kept = perBlock
		r.list(b, wholeKept)
	}
	r.reserved += n
	r.kept += n
	return nil
}

// putBy puts host memory behind [pa, pa+n), which is zero.
func (r *ram) putBy(pa, n uint64) error {
	mem := r.bytes(pa, n)
	err := unix.Madvise(mem, unix.MADV_POPULATE_WRITE)
	for err == unix.EINTR || err == unix.EAGAIN {
		err = unix.Madvise(mem, unix.MADV_POPULATE_WRITE)
	}
	if err == unix.EINVAL { // a host before Linux 5.14
		for i := uint64(0); i < n; i += page {
			mem[i] = 0
		}
		return nil
	}
	return err
}

// keep puts host memory behind as much of [pa, pa+n), which has just become free, as the reservation lacks, and returns how much that is. Whatever the
// guest does, it has host memory for what it uses or for what is reserved, whichever is more.
func (r *ram) keep(pa, n uint64) uint64 {
	have := r.used + r.kept
	if have >= r.reserved {
		return 0
	}
	n = min(n, r.reserved-have)
	if r.putBy(pa, n) != nil {
		return 0 // the host broke its promise; what is freed next is tried again
	}
	r.kept += n
	return n
}

// drop notes that the guest has discarded [pa, pa+n), which it keeps.
func (r *ram) drop(pa, n uint64) {
	if r.dropped == nil {
		r.dropped = make([]uint64, (uint64(len(r.mem))/page+63)/64)
	}
	for i := (pa - r.base) / page; n > 0; i, n = i+1, n-page {
		r.dropped[i/64] |= 1 << (i % 64)
	}
}

// undrop forgets that.
func (r *ram) undrop(pa, n uint64) {
	if r.dropped == nil {
		return
	}
	for i := (pa - r.base) / page; n > 0; i, n = i+1, n-page {
		r.dropped[i/64] &^= 1 << (i % 64)
	}
}

// wasDropped reports whether the page at pa has been discarded since it was handed out. It may have been used again.
func (r *ram) wasDropped(pa uint64) bool {
	i := (pa - r.base) / page
	return r.dropped != nil && r.dropped[i/64]&(1<<(i%64)) != 0
}
