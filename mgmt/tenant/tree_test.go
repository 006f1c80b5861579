package tenant

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// host is a tree of 2 cores and 8 GiB, of which the host itself needs 0.1 core and 512 MiB.
func host(t testing.TB) *Tree {
	t.Helper()
	tree, err := New(Share{CPU: CPU{Guarantee: 2000}, Memory: Memory{Reserved: 8 << 30}}, Share{CPU: CPU{Guarantee: 100}, Memory: Memory{Reserved: 512 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func cores(m Milli) Share { return Share{CPU: CPU{Guarantee: m}} }

// do makes the steps "add PARENT KIND:NAME MILLI" of a table.
func add(t testing.TB, tree *Tree, parent string, kind Kind, name string, s Share) {
	t.Helper()
	if err := tree.Add(Path(parent), Key{kind, name}, s); err != nil {
		t.Fatal(err)
	}
}

func TestRefusalShowsTheSum(t *testing.T) {
	tree := host(t)
	add(t, tree, "", Tenant, "acme", cores(1500))
	add(t, tree, "acme", VM, "web", cores(1000))
	add(t, tree, "", Driver, "blk0", cores(50))
	for _, c := range []struct{ got, want string }{
		{tree.Add("", Key{Tenant, "other"}, cores(1000)).Error(),
			"tenant other asks for a CPU guarantee of 1 core, but the host has 0.35 cores free of 2 cores: held by tenant acme 1.5 cores, the host's own needs 0.1 cores, driver blk0 0.05 cores"},
		{tree.Add("acme", Key{VM, "db"}, cores(600)).Error(),
			"VM db asks for a CPU guarantee of 0.6 cores, but tenant acme has 0.5 cores free of 1.5 cores: held by VM web 1 core"},
		{tree.Set(Key{VM, "web"}, cores(1600)).Error(),
			"VM web asks for a CPU guarantee of 1.6 cores, but tenant acme has 1.5 cores free of 1.5 cores: nobody holds any of it"},
		{tree.Set(Key{Tenant, "acme"}, cores(900)).Error(),
			"tenant acme cannot be set to a CPU guarantee of 0.9 cores: 1 core of it is in use, held by VM web 1 core"},
		{tree.Add("", Key{VM, "big"}, Share{Memory: Memory{Reserved: 8 << 30}}).Error(),
			"VM big asks for reserved memory of 8G, but the host has 7680M free of 8G: held by the host's own needs 512M"},
		{tree.Add("", Key{VM, "fast"}, Share{Devices: map[string]Device{"blk0": {Ops: Rate{Guarantee: 10}}}}).Error(),
			"VM fast asks for a guarantee of blk0:ops of 10/s, but the host has 0/s free of 0/s: nobody holds any of it"},
	} {
		if c.got != c.want {
			t.Errorf("got  %s\nwant %s", c.got, c.want)
		}
	}
	// What was refused changed nothing.
	if err := tree.Add("acme", Key{VM, "db"}, cores(500)); err != nil {
		t.Error(err)
	}
	if err := tree.Add("", Key{Tenant, "other"}, cores(350)); err != nil {
		t.Error(err)
	}
}

// A number of VMs is limited where a limit stands, however many domains lie between.
func TestCountsReachThroughTenantsWithoutALimit(t *testing.T) {
	tree := host(t)
	add(t, tree, "", Tenant, "a", Share{VMs: 3})
	add(t, tree, "a", Tenant, "a/b", Share{})
	add(t, tree, "a", VM, "v1", Share{VMs: 1})
	add(t, tree, "a/b", VM, "v2", Share{VMs: 1})
	add(t, tree, "a/b", VM, "v3", Share{VMs: 1})
	err := tree.Add("a/b", Key{VM, "v4"}, Share{VMs: 1})
	const want = "VM v4 asks for 1 VM, but tenant a has 0 VMs free of 3 VMs: held by tenant a/b 2 VMs, VM v1 1 VM"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if err := tree.Set(Key{Tenant, "a/b"}, Share{VMs: 1}); err == nil || !strings.Contains(err.Error(), "2 VMs of it is in use") {
		t.Errorf("a limit below use: %v", err)
	}
	if err := tree.Remove(Key{VM, "v1"}); err != nil {
		t.Fatal(err)
	}
	if err := tree.Add("a/b", Key{VM, "v4"}, Share{VMs: 1}); err != nil {
		t.Error(err)
	}
}

func TestTreeErrors(t *testing.T) {
	tree := host(t)
	add(t, tree, "", Tenant, "a", cores(100))
	add(t, tree, "a", VM, "v", cores(100))
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"parent", tree.Add("b", Key{VM, "w"}, Share{}), ErrMissing},
		{"twice", tree.Add("", Key{VM, "v"}, Share{}), ErrExists},
		{"set nobody", tree.Set(Key{VM, "w"}, Share{}), ErrMissing},
		{"remove nobody", tree.Remove(Key{VM, "w"}), ErrMissing},
		{"remove in use", tree.Remove(Key{Tenant, "a"}), ErrInUse},
		{"remove the host", tree.Remove(HostKey), ErrMissing},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	if err := tree.Add("", Key{Tenant, "a/b"}, Share{}); err == nil {
		t.Error("a tenant was added below another parent than its path's")
	}
	if _, err := New(cores(50), cores(100)); err == nil {
		t.Error("a host needs more than it has")
	}
}

func TestParsePath(t *testing.T) {
	for s, ok := range map[string]bool{"": true, "/": true, "a": true, "a/b": true, "a//b": false, "/a": false, "a/": false, "..": false, "a/../b": false,
		"-a": false, strings.Repeat("x", 33): false, "a/b/c/d/e/f/g/h": true, "a/b/c/d/e/f/g/h/i": false, "a b": false} {
		if _, err := ParsePath(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
	if p := Path("a/b"); p.Parent() != "a" || p.Name() != "b" || p.Parent().Parent() != Root {
		t.Error("parent and name of a/b")
	}
}

// model is what the tree is to be, kept in the dumbest way.
type model map[Key]struct {
	parent Key
	share  Share
}

func (m model) clone() model {
	c := model{}
	for k, v := range m {
		c[k] = v
	}
	return c
}

func owns(s Share, r Resource) int64 {
	switch r {
	case CPUTime:
		return int64(max(s.CPU.Guarantee, s.CPU.RealTime.Milli()))
	case MemoryBytes:
		return s.Memory.Reserved
	case VMCount:
		return s.VMs
	case ThreadCount:
		return s.Threads
	}
	return s.Devices["d"].Ops.Guarantee
}

var modelled = []Resource{CPUTime, MemoryBytes, VMCount, ThreadCount, "d:ops"}

func (m model) claim(k Key, r Resource) int64 {
	own := owns(m[k].share, r)
	if own > 0 || r != VMCount && r != ThreadCount {
		return own
	}
	return m.sum(k, r)
}

func (m model) sum(k Key, r Resource) (n int64) {
	for c, v := range m {
		if v.parent == k && c != HostKey {
			n += m.claim(c, r)
		}
	}
	return n
}

// holds reports whether nobody subdivides more than it owns.
func (m model) holds() bool {
	for k, v := range m {
		for _, r := range modelled {
			own := owns(v.share, r)
			if (r == VMCount || r == ThreadCount) && own == 0 {
				continue
			}
			if m.sum(k, r) > own {
				return false
			}
		}
	}
	return true
}

func share(rt *rapid.T) Share {
	n := func(name string, most int64) int64 {
		return rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(0, most)).Draw(rt, name)
	}
	s := Share{CPU: CPU{Guarantee: Milli(n("cpu", 900)), Weight: n("weight", 300), Cap: Milli(n("cap", 2500))}, Memory: Memory{Reserved: n("memory", 4000)},
		VMs: n("vms", 4), Threads: n("threads", 40)}
	if ops := n("ops", 60); ops > 0 {
		s.Devices = map[string]Device{"d": {Ops: Rate{Guarantee: ops}}}
	}
	if rapid.IntRange(0, 9).Draw(rt, "rt") == 0 {
		s.CPU.RealTime = &RealTime{RuntimeUs: 5000, PeriodUs: 20000}
	}
	return s
}

// Whatever is added, changed and removed, in whatever order: the tree admits exactly what the model admits, never over-commits, and what was
// refused or undone leaves no trace.
func TestTreeAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		capacity := Share{CPU: CPU{Guarantee: 2000}, Memory: Memory{Reserved: 10000}, VMs: 8, Devices: map[string]Device{"d": {Ops: Rate{Guarantee: 100}}}}
		own := cores(100)
		tree, err := New(capacity, own)
		if err != nil {
			rt.Fatal(err)
		}
		m := model{HostKey: {share: capacity}, {Kind: Own}: {HostKey, own}}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			var tenants, all []Key
			for k := range m {
				if k.Kind == Tenant || k.Kind == Host {
					tenants = append(tenants, k)
				}
				if k.Kind != Host && k.Kind != Own {
					all = append(all, k)
				}
			}
			byName := func(a, b Key) int { return strings.Compare(a.Name+string(a.Kind), b.Name+string(b.Kind)) }
			slices.SortFunc(tenants, byName)
			slices.SortFunc(all, byName)
			next := m.clone()
			var err error
			var key Key
			undo := func() error { return nil }
			switch op := rapid.IntRange(0, 3).Draw(rt, "op"); {
			case op <= 1 || len(all) == 0:
				parent := rapid.SampledFrom(tenants).Draw(rt, "parent")
				s := share(rt)
				name := fmt.Sprintf("n%d", rapid.IntRange(0, 30).Draw(rt, "name"))
				key = Key{VM, name}
				if rapid.Bool().Draw(rt, "tenant") {
					key = Key{Tenant, strings.TrimPrefix(parent.Name+"/"+name, "/")}
				}
				if _, ok := m[key]; ok {
					continue
				}
				next[key] = struct {
					parent Key
					share  Share
				}{parent, s}
				err = tree.Add(Path(parent.Name), key, s)
				undo = func() error { return tree.Remove(key) }
			case op == 2:
				key = rapid.SampledFrom(all).Draw(rt, "key")
				v := next[key]
				before := v.share
				v.share = share(rt)
				next[key] = v
				err = tree.Set(key, v.share)
				undo = func() error { return tree.Set(key, before) }
			default:
				key = rapid.SampledFrom(all).Draw(rt, "key")
				children := false
				for _, v := range m {
					children = children || v.parent == key
				}
				if err := tree.Remove(key); (err != nil) != children {
					rt.Fatalf("remove %v with children %v: %v", key, children, err)
				}
				if !children {
					delete(m, key)
				}
				continue
			}
			var refused *Refused
			switch {
			case err == nil && !next.holds():
				rt.Fatalf("%v: over-committed", key)
			case err != nil && next.holds():
				rt.Fatalf("%v was refused although there is room: %v", key, err)
			case errors.As(err, &refused):
				if refused.Asked <= refused.Free() && refused.Who != refused.At {
					rt.Fatalf("the sum shows no reason: %v", err)
				}
				var held int64
				for _, h := range refused.Holders {
					held += h.Amount
				}
				if held != refused.Held {
					rt.Fatalf("the holders have %d of %d: %v", held, refused.Held, err)
				}
			case err != nil:
				rt.Fatal(err)
			case rapid.IntRange(0, 3).Draw(rt, "undo") == 0:
				if err := undo(); err != nil {
					rt.Fatalf("what was done cannot be undone: %v", err)
				}
			default:
				m = next
			}
			for k, v := range m {
				got, _ := tree.Share(k)
				if !reflect.DeepEqual(got, v.share) {
					rt.Fatalf("%v has %+v, want %+v", k, got, v.share)
				}
				for _, r := range modelled {
					if got, want := tree.Held(k, r), m.sum(k, r); got != want {
						rt.Fatalf("%v: %s held %d, want %d", k, r, got, want)
					}
				}
			}
			if n := len(slices.Collect(tree.All())); n != len(m) {
				rt.Fatalf("%d nodes, want %d", n, len(m))
			}
		}
	})
}

func TestThousandTenants(t *testing.T) {
	tree, err := New(Share{CPU: CPU{Guarantee: 64_000}}, cores(1000))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		add(t, tree, "", Tenant, fmt.Sprintf("t%d", i), cores(63))
	}
	if err := tree.Add("", Key{Tenant, "one-more"}, cores(1)); err == nil || !strings.Contains(err.Error(), "others") {
		t.Errorf("one too many: %v", err)
	}
	if n := len(tree.Entitlements()); n != 1001 {
		t.Errorf("%d entitlements", n)
	}
}
