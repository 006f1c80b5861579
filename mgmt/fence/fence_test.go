package fence

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// open returns a tree of the test's own, which leaves nothing behind.
func open(t *testing.T, need ...Controller) *Tree {
	t.Helper()
	name := fmt.Sprintf("grail-test-%d-%s", os.Getpid(), strings.ReplaceAll(strings.ToLower(t.Name()), "/", "-"))
	tree := Open(name)
	for _, c := range need {
		if err := tree.Can(c); err != nil {
			t.Skipf("no cgroups here: %v", err)
		}
	}
	t.Cleanup(func() {
		tree.Sweep(func(string) bool { return false })
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/", "/sys/fs/cgroup/*/*/", "/sys/fs/cgroup/*/*/*/"} {
			if left, _ := filepath.Glob(pattern + name); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		}
	})
	return tree
}

func TestMembersAreFoundAgain(t *testing.T) {
	tree := open(t, CPU, Memory)
	apply(t, tree, Group{"t.a", Limits{Weight: Parts}}, Group{"t.a/v.web", Limits{Weight: Parts, CapMilli: 500, MemoryBytes: 64 << 20, Threads: 50}})
	pid := member(t)
	if _, ok := tree.Of(pid); ok {
		t.Error("a process outside is said to be inside")
	}
	if err := tree.Add("t.a/v.web", pid); err != nil {
		t.Fatal(err)
	}
	again := Open(tree.name) // as the next graild
	if g, ok := again.Of(pid); !ok || g != "t.a/v.web" {
		t.Errorf("found in %q, %v", g, ok)
	}
	if _, ok := Open("other").Of(pid); ok {
		t.Error("found in a tree where it is not")
	}
	if err := again.Remove("t.a/v.web"); err == nil {
		t.Error("a group with a process was removed")
	}
	if _, err := again.Usage("t.a"); err != nil {
		t.Error(err)
	}
}

func apply(t *testing.T, tree *Tree, list ...Group) {
	t.Helper()
	if err := tree.ApplyAll(list); err != nil {
		t.Fatal(err)
	}
}

// read returns a value of a group as the kernel has it.
func read(t *testing.T, tree *Tree, c Controller, group, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(tree.h.dir(c, group), file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// The kernel refuses a group more than the one above it has, at every moment: whatever the limits were before, ApplyAll finds an order.
func TestLimitsMoveTogether(t *testing.T) {
	tree := open(t, CPU, Set)
	both := func(capMilli int64, cpus string) []Group {
		l := Limits{Weight: Parts, CapMilli: capMilli, CPUs: cpus}
		return []Group{{"", Limits{}}, {"t.a", l}, {"t.a/v.web", l}}
	}
	last := "0"
	if n := numCPU(t); n > 1 {
		last = fmt.Sprint(n - 1)
	}
	for _, step := range []struct {
		capMilli int64
		cpus     string
	}{{500, "0"}, {200, last}, {1500, "0"}, {50, last}, {0, ""}, {900, "0"}} {
		apply(t, tree, both(step.capMilli, step.cpus)...)
	}
	for _, g := range []string{"t.a", "t.a/v.web"} {
		if _, ok := tree.h.(*v1); !ok {
			if got := read(t, tree, CPU, g, "cpu.max"); got != "18000 20000" {
				t.Errorf("%s: quota %s", g, got)
			}
		} else {
			if q, p := read(t, tree, CPU, g, "cpu.cfs_quota_us"), read(t, tree, CPU, g, "cpu.cfs_period_us"); q != "18000" || p != "20000" {
				t.Errorf("%s: quota %s of %s", g, q, p)
			}
		}
		if cpus := read(t, tree, Set, g, "cpuset.cpus"); cpus != "0" {
			t.Errorf("%s runs on %s", g, cpus)
		}
	}
}

func numCPU(t *testing.T) int {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		t.Fatal(err)
	}
	_, last, ok := strings.Cut(strings.TrimSpace(string(b)), "-")
	n := 0
	if ok {
		fmt.Sscan(last, &n)
	}
	return n + 1
}

func TestSweepLeavesWhatIsKept(t *testing.T) {
	tree := open(t, CPU)
	apply(t, tree, Group{"t.a", Limits{}}, Group{"t.a/v.gone", Limits{CapMilli: 10}}, Group{"t.b", Limits{}})
	tree.Sweep(func(g string) bool { return g == "t.a" })
	if got := fmt.Sprint(tree.Groups()); got != "[t.a]" {
		t.Errorf("left: %s", got)
	}
	apply(t, tree, Group{"t.b", Limits{}}) // what was swept can come back
}

// A controller that cannot be used costs what it enforces, and nothing else.
func TestHalfDelegated(t *testing.T) {
	tree := open(t, CPU, Memory)
	tree.can[Memory] = fmt.Errorf("%w: read-only", ErrUnavailable)
	if err := tree.Apply("v.web", Limits{CapMilli: 500, MemoryBytes: 64 << 20}); err != nil {
		t.Errorf("what can be enforced: %v", err)
	}
	if _, v1 := tree.h.(*v1); v1 {
		if _, err := os.Stat(tree.h.dir(Memory, "v.web")); err == nil {
			t.Error("a group under a controller that is not to be used")
		}
	} else if n, err := number(filepath.Join(tree.h.dir(Memory, "v.web"), "memory.max")); err == nil { // "max" is no number
		t.Errorf("a bound of %d by a controller that is not to be used", n)
	}
	if err := tree.Add("v.web", member(t)); err != nil {
		t.Error(err)
	}
}

// Where there are no cgroups, everything is a no-op that says why.
func TestNoCgroups(t *testing.T) {
	tree := None(errors.New("none today"))
	if err := tree.ApplyAll([]Group{{"t.a", Limits{CapMilli: 5}}}); err != nil {
		t.Error(err)
	}
	if err := tree.Add("t.a", os.Getpid()); err != nil {
		t.Error(err)
	}
	if _, ok := tree.Of(os.Getpid()); ok {
		t.Error("found a group")
	}
	if err := tree.Remove("t.a"); err != nil {
		t.Error(err)
	}
	if _, err := tree.Usage("t.a"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("usage: %v", err)
	}
	tree.Sweep(func(string) bool { return false })
}

func TestPathsBelowTheCallersName(t *testing.T) {
	for _, c := range []struct{ path, name, below, base string }{
		{"/grail-1/t.a/v.b", "grail-1", "t.a/v.b", "/"},
		{"/user.slice/grail-1/v.b", "grail-1", "v.b", "/user.slice"},
		{"/grail-1", "grail-1", "", "/"},
	} {
		if g, ok := below(c.path, c.name); !ok || g != c.below || base(c.path, c.name) != c.base {
			t.Errorf("%s: below %q, %v, base %q", c.path, g, ok, base(c.path, c.name))
		}
	}
	if _, ok := below("/grail-12/v.b", "grail-1"); ok {
		t.Error("another caller's name was taken for ours")
	}
}
