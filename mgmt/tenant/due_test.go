package tenant

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// due returns what is due to each node, by its name.
func due(tree *Tree) map[string]Milli {
	m := map[string]Milli{}
	for _, e := range tree.Entitlements() {
		m[e.Key.Name] = e.Milli
	}
	return m
}

func TestDue(t *testing.T) {
	live := func(tree *Tree, names ...string) {
		for _, n := range names {
			tree.SetLive(Key{VM, n}, true)
		}
	}
	tree := host(t)
	add(t, tree, "", Tenant, "a", Share{CPU: CPU{Guarantee: 500, Weight: 300}})
	add(t, tree, "", Tenant, "b", Share{CPU: CPU{Guarantee: 300}})
	add(t, tree, "a", VM, "a1", Share{})
	add(t, tree, "b", VM, "b1", Share{CPU: CPU{Guarantee: 200}})
	add(t, tree, "b", VM, "b2", Share{CPU: CPU{Cap: 250}})

	// Nothing runs: everybody has what is guaranteed.
	if got := due(tree); got["a"] != 500 || got["b"] != 300 || got["b1"] != 200 {
		t.Errorf("nothing runs: %v", got)
	}
	// a and b: 2000-500-300 to divide by 3:1.
	live(tree, "a1", "b1")
	if got := due(tree); got["a"] != 1400 || got["b"] != 600 || got["a1"] != 1400 || got["b1"] != 600 {
		t.Errorf("both: %v", got)
	}
	// In b, b2 stops at its cap, and b1 has the rest.
	live(tree, "b2")
	if got := due(tree); got["b1"] != 400 || got["b2"] != 200 {
		t.Errorf("three VMs: %v", got)
	}
	if err := tree.Set(Key{Tenant, "a"}, Share{CPU: CPU{Guarantee: 500, Cap: 500}}); err != nil {
		t.Fatal(err)
	}
	if got := due(tree); got["a"] != 500 || got["b"] != 1500 || got["b1"] != 1250 || got["b2"] != 250 {
		t.Errorf("a capped: %v", got)
	}
	for _, e := range tree.Entitlements() {
		if e.Key.Name == "a1" && e.Cap != 500 {
			t.Errorf("the cap of a's VM is %v, want its parent's", e.Cap)
		}
	}
}

// What a VM gives a driver of its guarantee is taken from the VM and from its tenants, and is the driver's and its tenants', while both run.
func TestFundedDriver(t *testing.T) {
	tree := host(t)
	funding := func(cores Milli) Share {
		return Share{CPU: CPU{Guarantee: 400}, Devices: map[string]Device{"d": {CPU: cores}, "elsewhere": {CPU: 1}}}
	}
	add(t, tree, "", Tenant, "a", Share{CPU: CPU{Guarantee: 600, Cap: 600}})
	add(t, tree, "", Tenant, "io", Share{CPU: CPU{Guarantee: 100, Cap: 600}})
	add(t, tree, "io", Driver, "d", Share{CPU: CPU{Guarantee: 50}})
	add(t, tree, "io", Driver, "e", Share{CPU: CPU{Guarantee: 50}})
	add(t, tree, "a", VM, "v", funding(150))
	add(t, tree, "a", VM, "w", Share{CPU: CPU{Guarantee: 200}})
	for _, k := range []Key{{VM, "v"}, {VM, "w"}, {Driver, "e"}} {
		tree.SetLive(k, true)
	}
	if got := due(tree); got["v"] != 400 || got["w"] != 200 || got["a"] != 600 {
		t.Errorf("the driver does not run: %v", got)
	}
	tree.SetLive(Key{Driver, "d"}, true)
	// All that wants more: the tenants have 450 and 250 guaranteed and share the rest up to their caps.
	demand := map[Key]Milli{}
	got := tree.Divide(Of("a"), 450, demand)
	if got[Key{VM, "v"}] != 250 || got[Key{VM, "w"}] != 200 {
		t.Errorf("in the VM's tenant: %v", got)
	}
	if got = tree.Divide(Of("io"), 250, demand); got[Key{Driver, "d"}] != 200 || got[Key{Driver, "e"}] != 50 {
		t.Errorf("in the driver's tenant: %v", got)
	}
	if got = tree.Divide(HostKey, 700, demand); got[Of("a")] != 450 || got[Of("io")] != 250 {
		t.Errorf("on the host: %v", got)
	}
	for _, bad := range []Share{funding(400), funding(-1), {CPU: CPU{Guarantee: 100, RealTime: &RealTime{5000, 100000}}, Devices: map[string]Device{"d": {CPU: 60}}}} {
		if err := bad.Check(0); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if err := tree.Set(Key{VM, "v"}, Share{CPU: CPU{Guarantee: 400}}); err != nil {
		t.Fatal(err)
	}
	if got = tree.Divide(Of("a"), 600, demand); got[Key{VM, "v"}] != 400 {
		t.Errorf("without funding: %v", got)
	}
}

// With less than what was admitted, all lose alike; of what one does not want, the others have more.
func TestDivideWhatThereIs(t *testing.T) {
	tree := host(t)
	a, b := Key{VM, "a"}, Key{VM, "b"}
	for k, g := range map[Key]Milli{a: 1200, b: 600} {
		add(t, tree, "", VM, k.Name, cores(g))
		tree.SetLive(k, true)
	}
	for _, c := range []struct {
		has    Milli
		demand map[Key]Milli
		a, b   Milli
	}{
		{1800, nil, 1200, 600},
		{900, nil, 600, 300},
		{0, nil, 0, 0},
		{1900, nil, 1250, 650},
		{1800, map[Key]Milli{a: 100}, 100, 1700},
		{1800, map[Key]Milli{a: 0}, 1, 1799},
		{300, map[Key]Milli{b: 100}, 276, 23},
	} {
		if got := tree.Divide(HostKey, c.has, c.demand); got[a] != c.a || got[b] != c.b {
			t.Errorf("%v with %v: %v", c.has, c.demand, got)
		}
	}
	if tree.Divide(Key{VM, "nobody"}, 100, nil) != nil {
		t.Error("nobody has children")
	}
}

func TestSetNarrows(t *testing.T) {
	tree := host(t)
	add(t, tree, "", Tenant, "a", Share{CPU: CPU{Set: "0-1"}})
	add(t, tree, "a", VM, "v", Share{CPU: CPU{Set: "1-2"}})
	add(t, tree, "a", VM, "w", Share{CPU: CPU{Set: "3"}})
	add(t, tree, "a", VM, "x", Share{})
	want := map[string]string{"a": "0-1", "v": "1", "w": "0-1", "x": "0-1"}
	for _, e := range tree.Entitlements() {
		if FormatSet(e.Set) != want[e.Key.Name] {
			t.Errorf("%s runs on %v, want %s", e.Key.Name, e.Set, want[e.Key.Name])
		}
	}
}

// Of whatever tree: nobody who runs gets less than its guarantee or more than its cap, children get no more than their parent has, and nothing is
// left over while somebody below its cap runs, but for rounding.
func TestDueAlwaysAddsUp(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tree, err := New(cores(4000), cores(100))
		if err != nil {
			rt.Fatal(err)
		}
		paths := []Path{Root}
		for i := range rapid.IntRange(1, 25).Draw(rt, "nodes") {
			parent := rapid.SampledFrom(paths).Draw(rt, "parent")
			s := Share{CPU: CPU{Guarantee: Milli(rapid.IntRange(0, 1500).Draw(rt, "guarantee")), Weight: rapid.Int64Range(0, 1000).Draw(rt, "weight")}}
			if rapid.Bool().Draw(rt, "capped") {
				s.CPU.Cap = max(s.CPU.Guarantee, MinCap) + Milli(rapid.IntRange(0, 800).Draw(rt, "cap"))
			}
			key := Key{VM, fmt.Sprint("v", i)}
			if rapid.Bool().Draw(rt, "tenant") && len(paths) < 9 {
				p := Path(fmt.Sprint("t", i))
				if parent != Root {
					p = parent + "/" + p
				}
				key = Key{Tenant, string(p)}
			}
			if tree.Add(parent, key, s) != nil {
				continue // there was no room
			}
			if key.Kind == Tenant {
				paths = append(paths, Path(key.Name))
			} else {
				tree.SetLive(key, rapid.Bool().Draw(rt, "live"))
			}
		}
		list := tree.Entitlements()
		has := map[Key]Milli{HostKey: 4000}
		for _, e := range list {
			has[e.Key] = e.Milli
			s, _ := tree.Share(e.Key)
			if e.Milli < s.CPU.Guarantee {
				rt.Fatalf("%v gets %v of %v guaranteed", e.Key, e.Milli, s.CPU.Guarantee)
			}
			if s.CPU.Cap > 0 && e.Milli > s.CPU.Cap {
				rt.Fatalf("%v gets %v above its cap %v", e.Key, e.Milli, s.CPU.Cap)
			}
		}
		for parent, total := range has {
			var sum Milli
			hungry, n := false, 0
			for _, e := range list {
				if e.Parent == parent && e.Live {
					s, _ := tree.Share(e.Key)
					sum += e.Milli
					n++
					hungry = hungry || s.CPU.Cap == 0 || e.Milli < s.CPU.Cap-Milli(n)
				}
			}
			if sum > total {
				rt.Fatalf("below %v: %v of %v given away", parent, sum, total)
			}
			if hungry && total-sum > Milli(n*n) {
				rt.Fatalf("below %v: only %v of %v given away", parent, sum, total)
			}
		}
		if !slices.ContainsFunc(list, func(e Entitled) bool { return e.Key.Kind == Own }) {
			rt.Fatal("the host's own needs are missing")
		}
	})
}
