package fence

import (
	"fmt"
	"testing"
)

// What v2 is told, on hosts with v1 as well: its files take other words.
func TestV2Values(t *testing.T) {
	tree := &Tree{h: &v2{base: "/"}}
	for _, c := range []struct {
		c      Controller
		l, old Limits
		want   string
	}{
		{CPU, Limits{Weight: Parts / 4}, Limits{}, "[max 20000] weight 2500"},
		{CPU, Limits{Weight: 1, CapMilli: 500}, Limits{}, "[10000 20000] weight 1"},
		{CPU, Limits{Weight: Parts, CapMilli: 50}, Limits{}, "[5000 100000] weight 10000"},
		{CPU, Limits{Weight: Parts}, Limits{CapMilli: 5}, "[max 20000] weight 10000"},
		{CPU, Limits{Weight: Parts}, Limits{Weight: 5}, "[] weight 10000"},
	} {
		r := tree.h.(*v2).convert(c.c, tree.resources(c.c, c.l, c.old))
		if got := fmt.Sprintf("[%s] weight %d", r.CPU.Max, *r.CPU.Weight); got != c.want {
			t.Errorf("%+v after %+v: %s, want %s", c.l, c.old, got, c.want)
		}
	}
	if r := tree.h.(*v2).convert(Usage, tree.resources(Usage, Limits{}, Limits{})); fmt.Sprint(r.EnabledControllers()) != "[cpu]" {
		t.Errorf("usage needs %v", r.EnabledControllers())
	}
	if r := tree.h.(*v2).convert(Threads, tree.resources(Threads, Limits{}, Limits{Threads: 5})); r.Pids.Max != anyThreads {
		t.Errorf("no bound of threads is %d", r.Pids.Max)
	}
	if m := tree.h.(*v2).convert(Memory, tree.resources(Memory, Limits{MemoryBytes: 3 << 20, ReservedBytes: 2 << 20}, Limits{})).Memory; *m.Max != 3<<20 || *m.Min != 2<<20 || m.Low != nil {
		t.Errorf("memory %+v", m)
	}
	if r := tree.h.(*v2).convert(Set, tree.resources(Set, Limits{CPUs: "0-1"}, Limits{})); r.CPU.Cpus != "0-1" {
		t.Errorf("set %q", r.CPU.Cpus)
	}
}
