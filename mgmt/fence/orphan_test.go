package fence

import (
	"os"
	"testing"
)

// What a caller has left that is no more goes, once nothing in it has changed between two looks; what a caller has that lives stays.
func TestOrphans(t *testing.T) {
	tree := open(t, CPU, Memory)
	prefix := tree.name + "-"
	other := func(name string) *Tree {
		o := Open(prefix + name)
		t.Cleanup(func() { o.Sweep(func(string) bool { return false }) })
		apply(t, o, Group{"", Limits{}}, Group{"t.a", Limits{}}, Group{"t.a/v.web", Limits{CapMilli: 500, MemoryBytes: 64 << 20}})
		return o
	}
	gone, busy, back := other("gone"), other("busy"), other("back")
	if err := busy.Add("t.a/v.web", member(t)); err != nil {
		t.Fatal(err)
	}
	apply(t, tree, Group{"", Limits{}}, Group{"v.own", Limits{CapMilli: 500}})
	first := tree.Orphans(prefix)
	for _, o := range []*Tree{gone, back} {
		if _, ok := first[o.Dir(CPU, "")]; !ok {
			t.Errorf("%s is not found", o.name)
		}
	}
	for dir := range first {
		if dir == busy.Dir(CPU, "") || dir == tree.Dir(CPU, "") {
			t.Errorf("%s lives", dir)
		}
	}
	// A successor has made a group anew.
	if err := back.Remove("t.a/v.web"); err != nil {
		t.Fatal(err)
	}
	apply(t, back, Group{"t.a/v.web", Limits{CapMilli: 500, MemoryBytes: 64 << 20}})
	if n := tree.RemoveOrphans(first); n == 0 {
		t.Error("nothing was removed")
	}
	if left := gone.Groups(); len(left) > 0 {
		t.Errorf("left of %s: %v", gone.name, left)
	}
	for _, o := range []*Tree{busy, back} {
		if len(o.Groups()) != 2 {
			t.Errorf("%s has %v", o.name, o.Groups())
		}
	}
	if len(tree.Groups()) != 1 {
		t.Errorf("its own: %v", tree.Groups())
	}
	if n := None(os.ErrNotExist).Orphans(""); len(n) != 0 {
		t.Errorf("without cgroups: %v", n)
	}
}
