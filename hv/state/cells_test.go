package state

import "testing"

type pair struct{ a, b uint64 }

func TestCells(t *testing.T) {
	w := words(make([]byte, 13*8)) // four cells
	c := NewCells[pair](w)
	all := func(uint64) bool { return true }
	for k := uint64(1); k <= 4; k++ {
		*c.Of(k, all) = pair{k, 2 * k}
	}
	if p := c.Of(5, all); *p != (pair{}) {
		t.Errorf("%+v", *p)
	} else {
		p.a = 9 // private
	}
	c = NewCells[pair](w) // a successor
	for k := uint64(1); k <= 4; k++ {
		if p := c.Of(k, all); *p != (pair{k, 2 * k}) {
			t.Errorf("%d: %+v", k, *p)
		}
	}
	// The one that is not in use gives way.
	if p := c.Of(6, func(k uint64) bool { return k != 2 }); *p != (pair{}) {
		t.Errorf("%+v: another key's counters", *p)
	}
	c = NewCells[pair](w)
	if _, ok := c.at[2]; ok || len(c.at) != 4 || len(c.free) != 0 {
		t.Errorf("%v", c.at)
	}
	if *c.Of(0, all) != (pair{}) {
		t.Error("key 0")
	}
	// A key that stands there twice is one cell.
	w[1], w[4] = 77, 77
	c = NewCells[pair](w)
	if len(c.at) != 3 || len(c.free) != 1 {
		t.Errorf("%v, %v free", c.at, c.free)
	}
	// More cells than there is room for.
	w[0] = 1 << 60
	if c = NewCells[pair](w); len(c.at)+len(c.free) != 4 || w[0] != 4 {
		t.Errorf("%v, %v free", c.at, c.free)
	}
	if p := NewCells[pair](nil).Of(1, all); *p != (pair{}) {
		t.Error("no words")
	}
}
