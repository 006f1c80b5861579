package fence

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/cgroups/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// mount is where cgroup file systems are mounted by convention (cgroups(7)).
const mount = "/sys/fs/cgroup"

// Controller is one kind of bound.
type Controller string

// The controllers.
const (
	CPU     Controller = "cpu"
	Usage   Controller = "cpuacct" // part of cpu in v2
	Memory  Controller = "memory"
	Threads Controller = "pids"
	Set     Controller = "cpuset"
)

var controllers = []Controller{CPU, Usage, Memory, Threads, Set}

// Limits is what a group enforces; zero fields are not limited.
type Limits struct {
	// Weight is the group's part of the processors beside its siblings', in millionths of their sum; 0: the kernel's default.
	Weight      uint64
	CapMilli    int64 // thousandths of a core
	MemoryBytes uint64
	// ReservedBytes of its memory are never reclaimed by the host's kernel; cgroups v2 alone can do that.
	ReservedBytes uint64
	Threads       int64
	CPUs          string // processors to run on, as in cpuset(7); empty: the parent's
}

// Parts is the sum of Limits.Weight of all siblings.
const Parts = 1_000_000

// ErrUnavailable reports that the caller can make no cgroup of the kind it needs.
var ErrUnavailable = errors.New("no usable cgroup")

// hierarchy is the cgroup file systems of one version.
type hierarchy interface {
	// dir returns the directory of a group under a controller.
	dir(c Controller, group string) string
	// apply makes the group, if need be, under one controller and writes res.
	apply(c Controller, group string, res *specs.LinuxResources) error
	// weigh writes a weight in its own unit into res.
	weigh(l *specs.LinuxCPU, parts uint64)
	// add moves a process with all its threads.
	add(cs []Controller, group string, pid int) error
	// found returns where a process is: the group's path below the caller's name, and false when it is in none.
	found(pid int, name string) (string, bool)
	usage(group string) (CPUUsage, error)
	// reserves reports whether memory can be reserved.
	reserves() bool
	// holds reports whether a process is in the group under each of the controllers.
	holds(cs []Controller, group string, pid int) bool
}

// Tree is the cgroups of one caller. Its methods are safe for concurrent use.
type Tree struct {
	// Step, unless nil, is called before each change of a cgroup. Tests die there.
	Step func()

	name string
	h    hierarchy // nil: none
	can  map[Controller]error

	mu   sync.Mutex
	have map[string]Limits // as last written
	in   map[string]map[Controller]bool
}

// Open returns the tree of the groups below name, which names all cgroups of one caller. What can be enforced here is found out with a group that is
// removed again.
func Open(name string) *Tree {
	t := &Tree{name: name, can: map[Controller]error{}, have: map[string]Limits{}, in: map[string]map[Controller]bool{}}
	var err error
	switch cgroups.Mode() {
	case cgroups.Unified:
		t.h, err = newV2(name)
	case cgroups.Legacy, cgroups.Hybrid:
		t.h, err = newV1(name)
	default:
		err = fmt.Errorf("none is mounted at %s", mount)
	}
	for _, c := range controllers {
		if err != nil {
			t.can[c] = fmt.Errorf("%w: %w", ErrUnavailable, err)
			continue
		}
		t.can[c] = t.probe(c)
	}
	return t
}

// None returns a tree in which nothing is enforced, for a reason.
func None(why error) *Tree {
	t := &Tree{can: map[Controller]error{}, have: map[string]Limits{}, in: map[string]map[Controller]bool{}}
	for _, c := range controllers {
		t.can[c] = fmt.Errorf("%w: %w", ErrUnavailable, why)
	}
	return t
}

// probe tries a controller in a group that nobody else uses.
func (t *Tree) probe(c Controller) error {
	group := fmt.Sprintf("probe.%d", os.Getpid())
	defer t.rmdir(c, group)
	res := t.resources(c, Limits{Weight: Parts / 2, CapMilli: 500, MemoryBytes: 64 << 20, Threads: 100}, Limits{})
	if err := t.h.apply(c, group, res); err != nil {
		return fmt.Errorf("%w: controller %s: %w", ErrUnavailable, c, err)
	}
	return nil
}

// Can returns nil if what a controller bounds can be enforced here, or an error that says why not: ErrUnavailable.
func (t *Tree) Can(c Controller) error { return t.can[c] }

// wants returns the controllers that a group needs: those that it is bounded by, and those that count and that its children may need.
func (t *Tree) wants(group string, l Limits) []Controller {
	var list []Controller
	for _, c := range controllers {
		if t.can[c] != nil {
			continue
		}
		// Being in one takes a move: not without need.
		switch c {
		case Memory:
			if l.MemoryBytes == 0 && (l.ReservedBytes == 0 || !t.h.reserves()) && !t.in[group][c] {
				continue
			}
		case Threads:
			if l.Threads == 0 && !t.in[group][c] {
				continue
			}
		case Set:
			if l.CPUs == "" && !t.in[group][c] {
				continue
			}
		}
		list = append(list, c)
	}
	return list
}

// Apply makes the group at the path, with those above it, and has it enforce l. A group above must have been applied before. It writes only what
// is different from what was applied last. It returns what could not be done, joined; the rest is done.
func (t *Tree) Apply(group string, l Limits) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, known := t.have[group]
	if known && old == l {
		return nil
	}
	if t.in[group] == nil {
		t.in[group] = map[Controller]bool{}
	}
	var errs []error
	for _, c := range t.wants(group, l) {
		if known && t.in[group][c] && !differs(c, old, l) {
			continue
		}
		t.step()
		err := t.h.apply(c, group, t.resources(c, l, old))
		if errors.Is(err, fs.ErrNotExist) {
			err = t.h.apply(c, group, t.resources(c, l, old)) // what was above it has just been removed
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("controller %s: %w", c, err))
			continue
		}
		t.in[group][c] = true
	}
	if len(errs) > 0 {
		delete(t.have, group)
		return fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(errs...))
	}
	t.have[group] = l
	return nil
}

// Group is a group and what it is to enforce.
type Group struct {
	Path string
	Limits
}

// ApplyAll applies groups, each given after those above it. The kernel refuses a group more than the one above it has: so all are loosened first, from
// above, and then tightened from below.
func (t *Tree) ApplyAll(list []Group) error {
	var errs []error
	for _, g := range list {
		t.mu.Lock()
		old, known := t.have[g.Path]
		t.mu.Unlock()
		if known {
			g.Limits = looser(old, g.Limits)
		}
		errs = append(errs, t.Apply(g.Path, g.Limits))
	}
	for _, g := range slices.Backward(list) {
		errs = append(errs, t.Apply(g.Path, g.Limits))
	}
	return errors.Join(errs...)
}

// looser returns b, but where a is looser.
func looser(a, b Limits) Limits {
	if a.CapMilli == 0 || b.CapMilli == 0 {
		b.CapMilli = 0
	} else {
		b.CapMilli = max(a.CapMilli, b.CapMilli)
	}
	switch {
	case a.CPUs == b.CPUs:
	case a.CPUs == "" || b.CPUs == "":
		b.CPUs = ""
	default:
		b.CPUs = a.CPUs + "," + b.CPUs
	}
	return b
}

func differs(c Controller, a, b Limits) bool {
	switch c {
	case CPU:
		return a.Weight != b.Weight || a.CapMilli != b.CapMilli
	case Memory:
		return a.MemoryBytes != b.MemoryBytes || a.ReservedBytes != b.ReservedBytes
	case Threads:
		return a.Threads != b.Threads
	case Set:
		return a.CPUs != b.CPUs
	}
	return false
}

// Periods of the CPU cap in microseconds. A domain that has used up its cap is silent until the period ends: short ones are better, but the
// kernel takes no quota below 1 ms.
const (
	shortPeriodUs = 20_000
	longPeriodUs  = 100_000
	shortFrom     = 100 // thousandths of a core from which the short one is used
)

// What stands for no bound: more than there can be.
const (
	anyThreads = 4 << 20 // Linux's PID_MAX_LIMIT
	anyMemory  = 1 << 62
)

// resources returns what a controller is to be told.
func (t *Tree) resources(c Controller, l, old Limits) *specs.LinuxResources {
	res := &specs.LinuxResources{}
	switch c {
	case CPU:
		res.CPU = &specs.LinuxCPU{}
		if l.Weight > 0 {
			t.h.weigh(res.CPU, l.Weight)
		}
		if l.CapMilli > 0 || old.CapMilli > 0 || old == (Limits{}) {
			quota, period := int64(-1), uint64(shortPeriodUs)
			if l.CapMilli > 0 {
				if l.CapMilli < shortFrom {
					period = longPeriodUs
				}
				quota = max(l.CapMilli*int64(period)/1000, 1000)
			}
			res.CPU.Quota, res.CPU.Period = &quota, &period
		}
	case Memory:
		limit := int64(anyMemory)
		if l.MemoryBytes > 0 {
			limit = int64(l.MemoryBytes)
		}
		res.Memory = &specs.LinuxMemory{Limit: &limit}
		if t.h.reserves() {
			reserved := int64(l.ReservedBytes)
			res.Memory.Reservation = &reserved
		}
	case Threads:
		limit := int64(anyThreads)
		if l.Threads > 0 {
			limit = l.Threads
		}
		res.Pids = &specs.LinuxPids{Limit: &limit}
	case Set:
		res.CPU = &specs.LinuxCPU{Cpus: l.CPUs}
	}
	return res
}

// Add moves process pid, with all its threads, into a group that was applied, unless it is there.
func (t *Tree) Add(group string, pid int) error {
	t.mu.Lock()
	var in []Controller
	for _, c := range controllers {
		if t.in[group][c] {
			in = append(in, c)
		}
	}
	t.mu.Unlock()
	if len(in) == 0 || t.h.holds(in, group, pid) {
		return nil
	}
	t.step()
	return t.h.add(in, group, pid)
}

func (t *Tree) step() {
	if t.Step != nil {
		t.Step()
	}
}

// Dir returns the directory in which the kernel keeps a group under a controller; empty where there are no cgroups.
func (t *Tree) Dir(c Controller, group string) string {
	if t.can[c] != nil {
		return ""
	}
	return t.h.dir(c, group)
}

// Of returns the group that process pid is in, and false if it is in none of the tree's.
func (t *Tree) Of(pid int) (string, bool) {
	if t.h == nil {
		return "", false
	}
	return t.h.found(pid, t.name)
}

// Remove removes a group, and those above it that are empty then. It is no error if there is none. One that holds a process stays, which is an
// error.
func (t *Tree) Remove(group string) error {
	if t.h == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.have, group)
	delete(t.in, group)
	var errs []error
	for _, c := range controllers {
		if t.can[c] != nil {
			continue
		}
		t.step()
		if err := os.Remove(t.h.dir(c, group)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// rmdir removes a group and the caller's own group above it if that is empty then.
func (t *Tree) rmdir(c Controller, group string) {
	_ = os.Remove(t.h.dir(c, group))
	_ = os.Remove(t.h.dir(c, "")) // refused while it has other members
}

// Sweep removes every group that holds no process and for which keep returns false, and the caller's own if nothing is left.
func (t *Tree) Sweep(keep func(group string) bool) {
	if t.h == nil {
		return
	}
	for _, g := range t.groups() {
		if !keep(g) {
			_ = t.Remove(g) // refused while it holds a process
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range controllers {
		if os.Remove(t.h.dir(c, "")) == nil {
			delete(t.have, "")
			delete(t.in[""], c)
		}
	}
}

// groups returns the paths of all groups that there are, children first.
func (t *Tree) groups() []string {
	seen := map[string]bool{}
	var list []string
	var walk func(top, rel string)
	walk = func(top, rel string) {
		entries, err := os.ReadDir(filepath.Join(top, rel))
		if err != nil {
			return
		}
		for _, e := range entries {
			if e.IsDir() {
				walk(top, path.Join(rel, e.Name()))
			}
		}
		if rel != "" && !seen[rel] {
			seen[rel] = true
			list = append(list, rel)
		}
	}
	for _, c := range controllers {
		walk(t.h.dir(c, ""), "")
	}
	return list
}

// Groups returns the paths of all groups that there are, children first.
func (t *Tree) Groups() []string {
	if t.h == nil {
		return nil
	}
	return t.groups()
}

// CPUUsage is what a group used of the processors.
type CPUUsage struct {
	UsedNs      uint64
	ThrottledNs uint64 // during which its cap held it up
}

// Usage returns what a group and those below it have used since it was made.
func (t *Tree) Usage(group string) (CPUUsage, error) {
	if t.h == nil {
		return CPUUsage{}, t.can[Usage]
	}
	return t.h.usage(group)
}

// below returns the part of a cgroup's path behind the caller's name.
func below(p, name string) (string, bool) {
	_, rest, ok := strings.Cut(p+"/", "/"+name+"/")
	return strings.Trim(rest, "/"), ok
}

// base returns the part of a cgroup's path before the caller's name.
func base(p, name string) string {
	before, _, _ := strings.Cut(p+"/", "/"+name+"/")
	if before == "" {
		return "/"
	}
	return before
}

// Procs returns the processes in a group, without those of the groups below it.
func (t *Tree) Procs(group string) (pids []int) {
	if t.h == nil || t.can[CPU] != nil {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(t.h.dir(CPU, group), "cgroup.procs"))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// MemoryUsed returns how much memory a group and those below it use, in bytes.
func (t *Tree) MemoryUsed(group string) (uint64, error) {
	if err := t.can[Memory]; err != nil {
		return 0, err
	}
	for _, name := range []string{"memory.usage_in_bytes", "memory.current"} {
		n, err := number(filepath.Join(t.h.dir(Memory, group), name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return n, err
	}
	return 0, nil // nothing runs there
}

// number reads a file with one number.
func number(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}
