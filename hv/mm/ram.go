package mm

import (
	"errors"
	"fmt"
	"slices"

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
	lists  [classes][]int // blocks with free pages, by class
	used   uint64         // bytes handed out
	most   uint64         // bytes that may be

	reserved uint64   // bytes behind which there is always host memory, handed out or not
	kept     uint64   // free bytes with host memory behind them
	dropped  []uint64 // a bit a page: handed out, and discarded at some time since; nil: none was
}

// class says which free pages a block has; kept ones have host memory behind them.
type class uint8

const (
	full        class = iota // none
	partial                  // some, none of them kept
	partialKept              // some, or all, of which some are kept
	whole                    // all, none of them kept
	wholeKept                // all, and all are kept
	classes
)

// block is the state of one 2 MiB block.
type block struct {
	free  []uint16 // page numbers, the kept ones last; nil for a whole block
	kept  int      // how many of them are kept
	class class
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
	r := &ram{base: base, mem: mem, blocks: make([]block, size/large), most: size}
	for b := range slices.Backward(r.blocks) { // the lowest is used first
		r.list(b, whole)
	}
	return r, nil
}

// list moves a block to the list of a class.
func (r *ram) list(b int, c class) {
	blk := &r.blocks[b]
	if blk.class == c {
		return
	}
	if l := r.lists[blk.class]; blk.class != full {
		i := len(l) - 1 // where blocks are taken from
		for l[i] != b {
			i--
		}
		r.lists[blk.class] = slices.Delete(l, i, i+1)
	}
	if blk.class = c; c != full {
		r.lists[c] = append(r.lists[c], b)
	}
}

// sort puts a block that has no longer the free pages that it had where it belongs.
func (r *ram) sort(b int) {
	blk := &r.blocks[b]
	switch {
	case len(blk.free) == 0:
		r.list(b, full)
	case len(blk.free) == perBlock && blk.kept == 0:
		blk.free = nil
		r.list(b, whole)
	case len(blk.free) == perBlock && blk.kept == perBlock:
		blk.free = nil
		r.list(b, wholeKept)
	case blk.kept > 0:
		r.list(b, partialKept)
	default:
		r.list(b, partial)
	}
}

// last returns the block of a class that is used next, or -1.
func (r *ram) last(c class) int {
	if n := len(r.lists[c]); n > 0 {
		return r.lists[c][n-1]
	}
	return -1
}

// plenty reports whether whole blocks may be spent on large pages without starving small ones.
func (r *ram) plenty() bool {
	blocks := uint64(len(r.lists[whole]) + len(r.lists[wholeKept]))
	return min(blocks, (r.most-min(r.used, r.most))/large) > r.most/large/4
}

// allocLarge returns a zeroed block, or false when there is none to be had. Host memory that is kept is used up first, page by page if need be.
func (r *ram) allocLarge() (pa uint64, ok bool) {
	b := r.last(wholeKept)
	switch {
	case r.used+large > r.most:
		return 0, false
	case b >= 0:
		r.kept -= large
		r.blocks[b].kept = 0
	case r.kept > 0:
		return 0, false
	default:
		if b = r.last(whole); b < 0 {
			return 0, false
		}
	}
	r.list(b, full)
	r.used += large
	return r.base + uint64(b)*large, true
}

// alloc returns a zeroed page, or false when none is left.
func (r *ram) alloc() (pa uint64, ok bool) {
	if r.used+page > r.most {
		return 0, false
	}
	for _, c := range []class{partialKept, wholeKept, partial, whole} {
		b := r.last(c)
		if b < 0 {
			continue
		}
		blk := &r.blocks[b]
		if blk.free == nil {
			blk.free = allPages()
		}
		i := blk.free[len(blk.free)-1]
		blk.free = blk.free[:len(blk.free)-1]
		if blk.kept > 0 {
			blk.kept--
			r.kept -= page
		}
		r.sort(b)
		r.used += page
		return r.base + uint64(b)*large + uint64(i)*page, true
	}
	return 0, false
}

// allPages returns the page numbers of a block, the lowest last.
func allPages() []uint16 {
	free := make([]uint16, perBlock)
	for i := range free {
		free[i] = uint16(perBlock - 1 - i)
	}
	return free
}

// free takes back size bytes at pa: one page, or a block that was given out whole. Their content must have
// been discarded.
func (r *ram) free(pa, size uint64) {
	b := int((pa - r.base) / large)
	blk := &r.blocks[b]
	r.used -= size
	r.undrop(pa, size)
	keep := r.keep(pa, size)
	if size == large {
		blk.free, blk.kept = allPages(), int(keep/page) // those at its start
	} else if n := uint16((pa - r.base) % large / page); keep > 0 {
		blk.free = append(blk.free, n)
		blk.kept++
	} else {
		blk.free = slices.Insert(blk.free, len(blk.free)-blk.kept, n)
	}
	r.sort(b)
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
