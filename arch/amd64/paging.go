package amd64

import "errors"

// Page-table entry bits (Intel SDM vol. 3 §4.5 4-Level Paging, Table 4-20).
const (
	pteP  = 1 << 0
	pteW  = 1 << 1
	pteU  = 1 << 2
	pteA  = 1 << 5
	pteD  = 1 << 6
	ptePS = 1 << 7
	pteNX = 1 << 63

	tableBits = pteP | pteW | pteU | pteA

	pteAddr = 0x000f_ffff_ffff_f000

	// wasLarge marks, in an entry that is not present, that it mapped a large page (the CPU ignores it).
	wasLarge = 1 << 9
)

// Perm is what user mode may do with a page.
type Perm uint8

// Permissions. PermUser is set on every page that user mode may touch at all.
const (
	PermUser Perm = 1 << iota
	PermWrite
	PermExec
)

func (p Perm) bits() uint64 {
	// Accessed and dirty are preset, so that no page walker ever writes to the tables.
	bits := uint64(pteP | pteA | pteD)
	if p&PermUser != 0 {
		bits |= pteU
	}
	if p&PermWrite != 0 {
		bits |= pteW
	}
	if p&PermExec == 0 {
		bits |= pteNX
	}
	return bits
}

// ErrNoTable reports that no memory is left for page tables.
var ErrNoTable = errors.New("amd64: no memory for page tables")

// Frames gives out physical frames for page tables, and access to them.
type Frames interface {
	// Alloc returns a zeroed frame, which stays a page table for as long as the tree lives.
	// Errors: ErrNoTable.
	Alloc() (pa uint64, err error)
	// Table returns the entries of a frame that Alloc returned.
	Table(pa uint64) *Table
	// Flush forgets every translation that any CPU or hypervisor has derived from the tables.
	Flush()
}

// Tables is a 4-level page-table tree. It is not safe for concurrent use. The CPUs that walk it
// concurrently see every entry change at once, but may keep a translation that they have cached: who removes
// or restricts pages flushes afterwards.
//
// A hypervisor that shadows the tables (software KVM, or hardware without nested paging) is not told when the
// tree changes, since it is changed from outside the guest. It copes with changed leaves whose pages it has
// been made to drop, but not with a large page that turns into a table or is mapped elsewhere: where the
// host has small pages behind it, a table stands in the shadow that goes on to fill itself from where the large
// page was. So Tables flushes by itself in between; and tables are never freed.
type Tables struct {
	frames Frames
	root   uint64
	stale  bool // a large page was unmapped since the last flush
}

func (t *Tables) flush() {
	t.frames.Flush()
	t.stale = false
}

// NewTables returns an empty tree.
func NewTables(frames Frames) (*Tables, error) {
	root, err := frames.Alloc()
	return &Tables{frames: frames, root: root}, err
}

// Root returns the physical address for CR3.
func (t *Tables) Root() uint64 { return t.root }

func index(va uint64, level int) int { return int(va >> (12 + 9*level) & 511) }

// walk returns the entry that maps va and its level (0: 4 KiB page, 1: 2 MiB page), with tables made on the
// way down to level `want` if make is set. A nil entry means that there is none.
func (t *Tables) walk(va uint64, want int, create bool) (e *uint64, level int, err error) {
	table := t.frames.Table(t.root)
	for level = 3; ; level-- {
		e = &table[index(va, level)]
		if level == want {
			return e, level, nil
		}
		v := *e
		if v&pteP == 0 {
			if !create {
				return nil, level, nil
			}
			pa, err := t.frames.Alloc()
			if err != nil {
				return nil, level, err
			}
			if v&wasLarge != 0 && t.stale {
				t.flush()
			}
			v = pa | tableBits
			storeEntry(e, v)
		} else if v&ptePS != 0 {
			return e, level, nil
		}
		table = t.frames.Table(v & pteAddr)
	}
}

// Map maps the 4 KiB page at va to pa. A large page in the way is split first.
func (t *Tables) Map(va, pa uint64, perm Perm) error {
	if err := t.split(va); err != nil {
		return err
	}
	e, _, err := t.walk(va, 0, true)
	if err != nil {
		return err
	}
	storeEntry(e, pa|perm.bits())
	return nil
}

// MapLarge maps the 2 MiB page at va to pa. The caller has checked that CanMapLarge.
func (t *Tables) MapLarge(va, pa uint64, perm Perm) error {
	e, _, err := t.walk(va, 1, true)
	if err != nil {
		return err
	}
	if *e&wasLarge != 0 && t.stale {
		t.flush()
	}
	storeEntry(e, pa|perm.bits()|ptePS)
	return nil
}

// CanMapLarge reports whether the 2 MiB around va are unmapped and never had a table of small pages.
func (t *Tables) CanMapLarge(va uint64) bool {
	e, level, _ := t.walk(va, 1, false)
	return e == nil || level == 1 && *e&pteP == 0
}

// Lookup returns where va is mapped to, the permissions, and the size of its page (0: not mapped). pa is the
// address of va itself, not of its page.
func (t *Tables) Lookup(va uint64) (pa uint64, perm Perm, size uint64) {
	e, level, _ := t.walk(va, 0, false)
	if e == nil || *e&pteP == 0 {
		return 0, 0, 0
	}
	v := *e
	if v&pteU != 0 {
		perm |= PermUser
	}
	if v&pteW != 0 {
		perm |= PermWrite
	}
	if v&pteNX == 0 {
		perm |= PermExec
	}
	size = PageSize << (9 * level)
	return v&pteAddr&^(size-1) | va&(size-1), perm, size
}

// split turns the large page around va, if there is one, into 512 small ones.
func (t *Tables) split(va uint64) error {
	e, level, _ := t.walk(va, 1, false)
	if e == nil || level != 1 || *e&(pteP|ptePS) != pteP|ptePS {
		return nil
	}
	pa, err := t.frames.Alloc()
	if err != nil {
		return err
	}
	table := t.frames.Table(pa)
	for i := range table {
		table[i] = *e&^ptePS + uint64(i)*PageSize
	}
	storeEntry(e, wasLarge)
	t.flush()
	storeEntry(e, pa|tableBits)
	return nil
}

// Visit calls f for every mapped page that touches [start, end), in order. f is given the page's address and
// size and where it is mapped to, and returns what should become of it. A large page that is only partly in
// the range is split. [start, end) is page-aligned.
func (t *Tables) Visit(start, end uint64, f func(va, pa, size uint64) Action) error {
	for va := start; va < end; {
		e, level, _ := t.walk(va, 0, false)
		size := uint64(PageSize) << (9 * level)
		if e == nil || *e&pteP == 0 {
			va = (va | (size - 1)) + 1
			continue
		}
		if level > 0 && (va&(size-1) != 0 || end-va < size) {
			if err := t.split(va); err != nil {
				return err
			}
			continue
		}
		switch a := f(va, *e&pteAddr&^(size-1), size); {
		case a.keep:
		case a.unmap:
			if level > 0 {
				storeEntry(e, wasLarge)
				t.stale = true
			} else {
				storeEntry(e, 0)
			}
		default:
			storeEntry(e, *e&(pteAddr|ptePS)|a.perm.bits())
		}
		va += size
	}
	return nil
}

// Action is what Visit does with a page.
type Action struct {
	keep, unmap bool
	perm        Perm
}

// Keep leaves the page as it is.
func Keep() Action { return Action{keep: true} }

// Unmap removes the page.
func Unmap() Action { return Action{unmap: true} }

// Protect gives the page other permissions.
func Protect(p Perm) Action { return Action{perm: p} }
