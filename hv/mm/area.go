package mm

import (
	"slices"
	"sort"
)

// Prot is what a guest may do with an area, in Linux's PROT_ bits.
type Prot uint8

// The permissions.
const (
	ProtRead  Prot = 1
	ProtWrite Prot = 2
	ProtExec  Prot = 4
)

// area is a run of guest-virtual pages with one meaning, [start, end).
type area struct {
	start, end uint64
	prot       Prot
	max        Prot      // what mprotect may raise prot to
	host       *hostArea // nil: anonymous memory
	offset     uint64    // of start in host

	own   bool // the program's segments, or its first stack
	cold  bool // what the guest can do without best (MADV_COLD)
	taken bool // repossessed: an access is SIGBUS
}

func (a *area) size() uint64 { return a.end - a.start }

// areas is the sorted list of a guest's areas, which never overlap.
type areas []area

// maxAreas bounds the list, as Linux's vm.max_map_count does.
const maxAreas = 65530

// at returns the index of the first area that ends behind addr.
func (l areas) at(addr uint64) int {
	return sort.Search(len(l), func(i int) bool { return l[i].end > addr })
}

// find returns the area around addr, or nil.
func (l areas) find(addr uint64) *area {
	if i := l.at(addr); i < len(l) && l[i].start <= addr {
		return &l[i]
	}
	return nil
}

// free reports whether no area touches [start, end).
func (l areas) free(start, end uint64) bool {
	i := l.at(start)
	return i == len(l) || l[i].start >= end
}

// cut splits areas so that one starts at addr, if one lies around it.
func (l *areas) cut(addr uint64) {
	i := l.at(addr)
	if i == len(*l) || (*l)[i].start >= addr {
		return
	}
	head := (*l)[i]
	tail := head
	head.end = addr
	tail.offset += addr - tail.start
	tail.start = addr
	(*l)[i] = head
	*l = slices.Insert(*l, i+1, tail)
}

// remove cuts [start, end) out of the list and returns the areas that were in it.
func (l *areas) remove(start, end uint64) []area {
	l.cut(start)
	l.cut(end)
	i, j := l.from(start), l.from(end)
	gone := slices.Clone((*l)[i:j])
	*l = slices.Delete(*l, i, j)
	return gone
}

// insert adds a, whose range must be free, joining it with its neighbours where they are alike.
func (l *areas) insert(a area) {
	i := l.at(a.start)
	like := func(x, y area) bool {
		return x.end == y.start && x.prot == y.prot && x.max == y.max && x.host == y.host &&
			x.own == y.own && x.cold == y.cold && x.taken == y.taken &&
			(x.host == nil || x.offset+x.size() == y.offset)
	}
	if i > 0 && like((*l)[i-1], a) {
		i--
		(*l)[i].end = a.end
	} else {
		*l = slices.Insert(*l, i, a)
	}
	if i+1 < len(*l) && like((*l)[i], (*l)[i+1]) {
		(*l)[i].end = (*l)[i+1].end
		*l = slices.Delete(*l, i+1, i+2)
	}
}

// gap returns the highest free range of size bytes, aligned, within [low, high), or false.
func (l areas) gap(size, align, low, high uint64) (uint64, bool) {
	top := high
	for i := l.from(high); ; i-- {
		floor := low
		if i > 0 {
			floor = max(low, l[i-1].end)
		}
		if top > floor && top-floor >= size {
			if start := (top - size) &^ (align - 1); start >= floor {
				return start, true
			}
		}
		if i == 0 || l[i-1].start <= low {
			return 0, false
		}
		top = min(top, l[i-1].start)
	}
}

// from returns the index of the first area that starts at addr or behind it.
func (l areas) from(addr uint64) int {
	return sort.Search(len(l), func(i int) bool { return l[i].start >= addr })
}
