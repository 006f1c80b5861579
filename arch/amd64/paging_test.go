package amd64

import (
	"math/rand/v2"
	"testing"
	"time"
)

// pool is page-table memory for tests.
type pool struct {
	tables  []*Table
	limit   int
	flushes int
}

func (p *pool) Alloc() (uint64, error) {
	if len(p.tables) == p.limit {
		return 0, ErrNoTable
	}
	p.tables = append(p.tables, new(Table))
	return uint64(len(p.tables)) << 12, nil
}
func (p *pool) Table(pa uint64) *Table { return p.tables[pa>>12-1] }
func (p *pool) Flush()                 { p.flushes++ }

func newTables(t *testing.T, limit int) (*Tables, *pool) {
	t.Helper()
	p := &pool{limit: limit}
	tables, err := NewTables(p)
	if err != nil {
		t.Fatal(err)
	}
	return tables, p
}

func TestPagingAgainstMap(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	tables, _ := newTables(t, 1000)
	type entry struct {
		pa   uint64
		perm Perm
	}
	model := map[uint64]entry{} // by small page
	const base, pages = 0x7f00_0000_0000, 4 * 512
	for step := range 3000 {
		va := base + PageSize*r.Uint64N(pages)
		perm := Perm(r.IntN(8))
		switch r.IntN(4) {
		case 0:
			pa := PageSize * r.Uint64N(1<<20)
			if err := tables.Map(va, pa, perm); err != nil {
				t.Fatal(err)
			}
			model[va] = entry{pa, perm}
		case 1:
			va &^= LargePage - 1
			if !tables.CanMapLarge(va) {
				continue
			}
			pa := LargePage * r.Uint64N(1<<10)
			if err := tables.MapLarge(va, pa, perm); err != nil {
				t.Fatal(err)
			}
			for i := range uint64(512) {
				model[va+i*PageSize] = entry{pa + i*PageSize, perm}
			}
		default:
			end := va + PageSize*(1+r.Uint64N(600))
			what := r.IntN(3)
			seen := map[uint64]bool{}
			err := tables.Visit(va, end, func(at, pa, size uint64) Action {
				for off := uint64(0); off < size; off += PageSize {
					m, ok := model[at+off]
					if !ok || m.pa != pa+off || at+off < va || at+off >= end {
						t.Fatalf("step %d: visited %#x at %#x, model %+v %v", step, at+off, pa+off, m, ok)
					}
					seen[at+off] = true
				}
				switch what {
				case 0:
					return Keep()
				case 1:
					return Protect(perm)
				}
				return Unmap()
			})
			if err != nil {
				t.Fatal(err)
			}
			for at := va; at < end; at += PageSize {
				m, ok := model[at]
				if ok != seen[at] {
					t.Fatalf("step %d: page %#x mapped %v, visited %v", step, at, ok, seen[at])
				}
				switch {
				case ok && what == 1:
					model[at] = entry{m.pa, perm}
				case what == 2:
					delete(model, at)
				}
			}
		}
		at := base + PageSize*r.Uint64N(pages)
		pa, perm, size := tables.Lookup(at + 5)
		m, ok := model[at]
		if ok != (size != 0) || ok && (pa != m.pa+5 || perm != m.perm) {
			t.Fatalf("step %d: look-up of %#x: %#x %v %d, model %+v %v", step, at, pa, perm, size, m, ok)
		}
	}
}

// A hypervisor's shadow of a large page must be gone before small pages appear in its place.
func TestLargeToSmallFlushes(t *testing.T) {
	tables, p := newTables(t, 100)
	if err := tables.MapLarge(LargePage, 0, PermUser); err != nil {
		t.Fatal(err)
	}
	if err := tables.Visit(LargePage, 2*LargePage, func(_, _, _ uint64) Action { return Unmap() }); err != nil {
		t.Fatal(err)
	}
	if p.flushes != 0 || !tables.CanMapLarge(LargePage) {
		t.Fatal("unmapping a large page flushed by itself, or left it unusable")
	}
	if err := tables.Map(LargePage, 0, PermUser); err != nil {
		t.Fatal(err)
	}
	if p.flushes != 1 {
		t.Errorf("%d flushes when a table replaced a large page", p.flushes)
	}
	if tables.CanMapLarge(LargePage) {
		t.Error("a region with a table may become a large page")
	}
	if err := tables.MapLarge(2*LargePage, LargePage, PermUser); err != nil {
		t.Fatal(err)
	}
	if err := tables.Map(2*LargePage+PageSize, 0, PermUser); err != nil {
		t.Fatal(err)
	}
	if p.flushes != 2 {
		t.Errorf("%d flushes after a split", p.flushes)
	}
	if pa, _, size := tables.Lookup(2*LargePage + 2*PageSize); pa != LargePage+2*PageSize || size != PageSize {
		t.Errorf("a neighbour of the split page is at %#x, size %d", pa, size)
	}
}

// Nor may another large page take the place of one without a flush; one flush serves all that were unmapped.
func TestLargeToLargeFlushes(t *testing.T) {
	tables, p := newTables(t, 100)
	mapAll := func(pa uint64) {
		for i := range uint64(3) {
			if err := tables.MapLarge((1+i)*LargePage, pa+i*LargePage, PermUser); err != nil {
				t.Fatal(err)
			}
		}
	}
	mapAll(0)
	if p.flushes != 0 {
		t.Errorf("%d flushes where nothing was mapped before", p.flushes)
	}
	for round := range 3 {
		if err := tables.Visit(LargePage, 4*LargePage, func(_, _, _ uint64) Action { return Unmap() }); err != nil {
			t.Fatal(err)
		}
		mapAll(uint64(round+1) * 8 * LargePage)
		if p.flushes != round+1 {
			t.Errorf("%d flushes after %d rounds", p.flushes, round+1)
		}
	}
}

func TestNoTables(t *testing.T) {
	tables, _ := newTables(t, 3)
	if err := tables.Map(0, 0, PermUser); err != ErrNoTable {
		t.Fatalf("mapped with too few tables: %v", err)
	}
	if _, _, size := tables.Lookup(0); size != 0 {
		t.Error("half a mapping is visible")
	}
}
