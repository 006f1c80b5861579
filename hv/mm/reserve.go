package mm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// reserveStep is how much is prefaulted at a time, during which the guest cannot fault: some 20 ms of work.
const reserveStep = 64 << 20

// Reserve puts host memory behind bytes of the guest's RAM, rounded up to a multiple of 2 MiB, and keeps it there until it is called again or the Space is gone: what of it is free is used before the rest. Less than
// before gives back what is free. progress, if not nil, is told how far it has come. Errors: the host has not got it; then as much is reserved as it had.
func (s *Space) Reserve(bytes uint64, progress func(done uint64)) error {
	size := uint64(len(s.ram.mem))
	if bytes > size {
		return fmt.Errorf("mm: %d bytes to reserve of %d", bytes, size)
	}
	bytes = (bytes + large - 1) &^ (large - 1)
	for {
		s.mu.Lock()
		r := s.ram
		r.reserved = min(bytes, max(r.reserved, r.used+r.kept)+reserveStep)
		err := r.settle()
		done := min(r.used+r.kept, bytes)
		if err != nil {
			r.reserved = done
		}
		s.bound = max(s.bound, r.reserved)
		r.most = max(r.most, s.bound)
		s.mu.Unlock()
		if err != nil {
			return fmt.Errorf("the host has no memory for more than %d of %d MiB that are reserved: %w", done>>20, bytes>>20, err)
		}
		if progress != nil {
			progress(done)
		}
		if done == bytes {
			return nil
		}
	}
}

// settle has as much free memory kept as the reservation lacks, and no more.
func (r *ram) settle() error {
	for r.used+r.kept < r.reserved {
		n, c := r.reserved-r.used-r.kept, whole
		b := r.last(whole)
		if b < 0 {
			c = partial
			b = r.last(partial)
		}
		if b < 0 {
			c = partialKept
			b = r.bare()
		}
		if b < 0 {
			return nil // all that is free is kept
		}
		blk := &r.blocks[b]
		start := r.base + uint64(b)*large
		if c == whole {
			n = min(n, large)
			if err := r.putBy(start, n); err != nil {
				return err
			}
			blk.free, blk.kept = allPages(), int(n/page) // those at its start
			r.kept += n
			r.sort(b)
			continue
		}
		for left := len(blk.free) - blk.kept; left > 0 && n > 0; left, n = left-1, n-page {
			if err := r.putBy(start+uint64(blk.free[left-1])*page, page); err != nil {
				r.sort(b)
				return err
			}
			blk.kept++
			r.kept += page
		}
		r.sort(b)
	}
	for excess := r.kept - min(r.kept, r.reserved-min(r.used, r.reserved)); excess > 0; {
		b := r.last(partialKept)
		if b < 0 {
			b = r.last(wholeKept)
		}
		blk := &r.blocks[b]
		if blk.free == nil {
			blk.free = allPages()
		}
		for ; blk.kept > 0 && excess > 0; excess -= page {
			r.discard(r.base+uint64(b)*large+uint64(blk.free[len(blk.free)-blk.kept])*page, page)
			blk.kept--
			r.kept -= page
		}
		r.sort(b)
	}
	return nil
}

// bare returns a block that has free pages of which some are kept and some are not, or -1.
func (r *ram) bare() int {
	for _, b := range r.lists[partialKept] {
		if r.blocks[b].kept < len(r.blocks[b].free) {
			return b
		}
	}
	return -1
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
