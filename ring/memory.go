package ring

import (
	"cmp"
	"fmt"
	"slices"
)

// Region is one contiguous piece of a peer's memory: Mem holds the bytes that the peer addresses as
// [Base, Base+len(Mem)). Mem is normally a shared mapping; its owner keeps it mapped for as long as any
// queue, chain or slice made from it is in use.
type Region struct {
	Base uint64
	Mem  []byte
}

// Memory is an immutable set of regions, the whole of what a peer may name in a descriptor. It is safe for
// concurrent use.
type Memory struct {
	regions []Region // sorted by Base, disjoint, none empty
}

// NewMemory returns the set of the given regions, in any order. Errors: ErrConfig for an empty region, a
// region that wraps around the address space, or two that overlap.
func NewMemory(regions ...Region) (*Memory, error) {
	rs := slices.Clone(regions)
	slices.SortFunc(rs, func(a, b Region) int { return cmp.Compare(a.Base, b.Base) })
	for i, r := range rs {
		n := uint64(len(r.Mem))
		if n == 0 {
			return nil, fmt.Errorf("%w: region at %#x is empty", ErrConfig, r.Base)
		}
		if r.Base+(n-1) < r.Base {
			return nil, fmt.Errorf("%w: region at %#x, %d bytes, wraps", ErrConfig, r.Base, n)
		}
		if i > 0 && r.Base-rs[i-1].Base < uint64(len(rs[i-1].Mem)) {
			return nil, fmt.Errorf("%w: regions at %#x and %#x overlap", ErrConfig, rs[i-1].Base, r.Base)
		}
	}
	return &Memory{regions: rs}, nil
}

// Regions returns the number of regions.
func (m *Memory) Regions() int { return len(m.regions) }

// Slice returns the memory of [addr, addr+length), with its capacity cut to its length. It does not
// allocate. A length of 0 yields an empty slice when addr itself is inside a region. Errors: ErrRange,
// unwrapped, when the range is not wholly inside one region.
func (m *Memory) Slice(addr uint64, length uint32) ([]byte, error) {
	var hint int
	return m.slice(addr, length, &hint)
}

// slice is Slice with the caller's memory of which region was hit last, tried before the search.
func (m *Memory) slice(addr uint64, length uint32, hint *int) ([]byte, error) {
	if i := *hint; i < len(m.regions) {
		if b, ok := m.regions[i].slice(addr, length); ok {
			return b, nil
		}
	}
	// The region that can hold addr is the last one with Base <= addr.
	lo, hi := 0, len(m.regions)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if m.regions[mid].Base <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return nil, ErrRange
	}
	b, ok := m.regions[lo-1].slice(addr, length)
	if !ok {
		return nil, ErrRange
	}
	*hint = lo - 1
	return b, nil
}

// slice cannot overflow: off wraps to a huge number when addr lies below Base, and is compared before the
// length is subtracted.
func (r *Region) slice(addr uint64, length uint32) ([]byte, bool) {
	off, n := addr-r.Base, uint64(len(r.Mem))
	if off >= n || uint64(length) > n-off {
		return nil, false
	}
	end := off + uint64(length)
	return r.Mem[off:end:end], true
}
