package mm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
)

// ErrNoMemory reports that the guest's memory reservation is used up.
var ErrNoMemory = errors.New("mm: memory reservation used up")

const (
	page      = amd64.PageSize
	large     = amd64.LargePage
	perBlock  = large / page
	noHugeMem = 16 << 20 // the first bytes of RAM are left in small host pages: small guests stay small
)

// ram is the guest's physical memory: 2 MiB blocks, given out whole or page by page. Free memory is zero. Not
// safe for concurrent use.
type ram struct {
	base   uint64 // guest-physical
	mem    []byte
	blocks []block
	// whole lists the blocks of which nothing is used, lowest last, partial those of which some pages are.
	whole   []int
	partial []int
	used    uint64 // bytes handed out
}

// block is the state of one 2 MiB block that is given out page by page.
type block struct {
	free    []uint16 // page numbers
	partial bool     // it stands in ram.partial
}

func newRAM(base, size uint64) (*ram, error) {
	if size == 0 || size%large != 0 {
		return nil, fmt.Errorf("mm: %d bytes of memory, expected a multiple of 2 MiB", size)
	}
	// One block more than needed, to align it for huge pages. Nothing is touched, so nothing is used.
	mem, err := unix.Mmap(-1, 0, int(size+large), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mm: reserve %d bytes: %w", size, err)
	}
	mem = mem[alignSlice(mem):][:size:size]
	if size > noHugeMem {
		// Advice only: a host without huge pages serves small ones.
		_ = unix.Madvise(mem[noHugeMem:], unix.MADV_HUGEPAGE)
	}
	// A core dump or a fork of the VMM has no business with it.
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	r := &ram{base: base, mem: mem, blocks: make([]block, size/large)}
	for i := range r.blocks {
		r.whole = append(r.whole, len(r.blocks)-1-i)
	}
	return r, nil
}

// plenty reports whether whole blocks may be spent on large pages without starving small ones.
func (r *ram) plenty() bool { return len(r.whole) > len(r.blocks)/4 }

// allocLarge returns a zeroed block, or false when none is left.
func (r *ram) allocLarge() (pa uint64, ok bool) {
	n := len(r.whole)
	if n == 0 {
		return 0, false
	}
	b := r.whole[n-1]
	r.whole = r.whole[:n-1]
	r.used += large
	return r.base + uint64(b)*large, true
}

// alloc returns a zeroed page, or false when none is left.
func (r *ram) alloc() (pa uint64, ok bool) {
	if len(r.partial) == 0 {
		n := len(r.whole)
		if n == 0 {
			return 0, false
		}
		b := r.whole[n-1]
		r.whole = r.whole[:n-1]
		free := make([]uint16, perBlock)
		for i := range free {
			free[i] = uint16(perBlock - 1 - i)
		}
		r.blocks[b] = block{free: free, partial: true}
		r.partial = append(r.partial, b)
	}
	b := r.partial[len(r.partial)-1]
	blk := &r.blocks[b]
	i := blk.free[len(blk.free)-1]
	blk.free = blk.free[:len(blk.free)-1]
	if len(blk.free) == 0 {
		blk.partial = false
		r.partial = r.partial[:len(r.partial)-1]
	}
	r.used += page
	return r.base + uint64(b)*large + uint64(i)*page, true
}

// free takes back size bytes at pa: one page, or a block that was given out whole. Their content must have
// been discarded.
func (r *ram) free(pa, size uint64) {
	b := int((pa - r.base) / large)
	r.used -= size
	if size == large {
		r.whole = append(r.whole, b)
		return
	}
	blk := &r.blocks[b]
	blk.free = append(blk.free, uint16((pa-r.base)%large/page))
	if len(blk.free) == perBlock {
		r.dropPartial(b)
		*blk = block{}
		r.whole = append(r.whole, b)
		return
	}
	if !blk.partial {
		blk.partial = true
		r.partial = append(r.partial, b)
	}
}

func (r *ram) dropPartial(b int) {
	for i, p := range r.partial {
		if p == b {
			r.partial = append(r.partial[:i], r.partial[i+1:]...)
			return
		}
	}
}

// contains reports whether pa lies in RAM.
func (r *ram) contains(pa uint64) bool { return pa-r.base < uint64(len(r.mem)) }

// bytes returns n bytes of RAM at pa, which must lie in it. Its capacity reaches to the end of RAM, so that
// neighbours can be joined.
func (r *ram) bytes(pa, n uint64) []byte { return r.mem[pa-r.base:][:n] }

// span is [pa, pa+size) of RAM.
type span struct{ pa, size uint64 }

// populate puts host memory behind a span, which KVM would otherwise do page by page, and for a page that is read first twice.
// Software KVM moreover maps up to eight neighbours at a time for the guest where it finds them there.
func (r *ram) populate(s span) {
	if s.size > 0 {
		// A host before Linux 5.14 does not know it, and a host without memory says so when the guest touches it.
		_ = unix.Madvise(r.bytes(s.pa, s.size), unix.MADV_POPULATE_WRITE)
	}
}

// discard zeroes [pa, pa+n), gives its host memory back, and makes KVM drop every translation to it.
func (r *ram) discard(pa, n uint64) {
	if err := unix.Madvise(r.bytes(pa, n), unix.MADV_DONTNEED); err != nil {
		panic(fmt.Sprintf("mm: discard own memory: %v", err)) // an invariant: private, unlocked, in range
	}
}
