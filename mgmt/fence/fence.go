package fence

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// mount is where cgroup file systems are mounted by convention (cgroups(7)).
const mount = "/sys/fs/cgroup"

// cpuPeriodUs is the period of the CPU cap in microseconds: the kernel's default. A capped VM may be silent for that
// long at a time.
const cpuPeriodUs = 100_000

// MinCPU is the smallest cap in cores that the kernel takes: a quota of 1 ms a period.
const MinCPU = 0.01

// Limits is what a fence enforces; zero fields are not limited.
type Limits struct {
	CPU         float64 // cores
	MemoryBytes uint64
}

// Fence is one cgroup. A nil Fence enforces nothing.
type Fence struct {
	v1 cgroup1.Cgroup
	v2 *cgroup2.Manager
	// groups are the directories of the group that the cgroup is in, removed with its last member.
	groups []string
}

// ErrUnavailable reports that the caller can make no cgroup of the kind it needs.
var ErrUnavailable = errors.New("no usable cgroup")

// New makes the cgroup group/name with limits. group names all cgroups of one caller. Errors: ErrUnavailable.
func New(group, name string, l Limits) (*Fence, error) {
	res := &specs.LinuxResources{}
	if l.CPU > 0 {
		quota, period := int64(max(l.CPU, MinCPU)*cpuPeriodUs), uint64(cpuPeriodUs)
		res.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	if l.MemoryBytes > 0 {
		limit := int64(l.MemoryBytes)
		res.Memory = &specs.LinuxMemory{Limit: &limit}
	}
	var f *Fence
	var err error
	// The second time, because the last member of the group may just have been removed, and the group with it.
	for range 2 {
		switch cgroups.Mode() {
		case cgroups.Unified:
			f, err = newV2(group, name, res)
		case cgroups.Legacy, cgroups.Hybrid:
			f, err = newV1(group, name, res)
		default:
			return nil, fmt.Errorf("%w: none is mounted at %s", ErrUnavailable, mount)
		}
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return f, err
}

func newV1(group, name string, res *specs.LinuxResources) (*Fence, error) {
	want := map[cgroup1.Name]bool{}
	if res.CPU != nil {
		want[cgroup1.Cpu] = true
	}
	if res.Memory != nil {
		want[cgroup1.Memory] = true
	}
	cg, err := cgroup1.New(cgroup1.NestedPath(path.Join(group, name)), res, cgroup1.WithHierarchy(only(want)))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if len(cg.Subsystems()) < len(want) {
		_ = cg.Delete()
		return nil, fmt.Errorf("%w: a controller is not mounted", ErrUnavailable)
	}
	return &Fence{v1: cg, groups: groupDirs(want, cgroup1.NestedPath(group))}, nil
}

// groupDirs returns the directories of a group under the wanted controllers.
func groupDirs(want map[cgroup1.Name]bool, at cgroup1.Path) (dirs []string) {
	subs, _ := only(want)()
	for _, s := range subs {
		p, ok := s.(interface{ Path(string) string })
		if name, err := at(s.Name()); ok && err == nil {
			dirs = append(dirs, p.Path(name))
		}
	}
	return dirs
}

// only returns the hierarchy of the wanted controllers that are mounted.
func only(want map[cgroup1.Name]bool) cgroup1.Hierarchy {
	return func() ([]cgroup1.Subsystem, error) {
		mounted, err := cgroup1.Default()
		if err != nil {
			return nil, err
		}
		var subs []cgroup1.Subsystem
		for _, s := range mounted {
			if want[s.Name()] {
				subs = append(subs, s)
			}
		}
		return subs, nil
	}
}

func newV2(group, name string, res *specs.LinuxResources) (*Fence, error) {
	base, err := delegated()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	m, err := cgroup2.NewManager(mount, path.Join(base, group, name), cgroup2.ToResources(res))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return &Fence{v2: m, groups: []string{path.Join(mount, base, group)}}, nil
}

// delegated returns the v2 cgroup under which the caller may make its own: the root for root, else its systemd user
// service, which the system delegates to the user.
func delegated() (string, error) {
	if os.Geteuid() == 0 {
		return "/", nil
	}
	own, err := cgroup2.NestedGroupPath("")
	if err != nil {
		return "", err
	}
	service := fmt.Sprintf("user@%d.service", os.Geteuid())
	if before, _, ok := strings.Cut(own, "/"+service); ok {
		return before + "/" + service, nil
	}
	return "", fmt.Errorf("%s is not delegated to you; run under systemd-run --user --scope, or as root", own)
}

// Of returns the fence that process pid is in, if it is one below group, else nil.
func Of(group string, pid int) *Fence {
	switch cgroups.Mode() {
	case cgroups.Unified:
		p, err := cgroup2.PidGroupPath(pid)
		if err != nil || path.Base(path.Dir(p)) != group {
			return nil
		}
		if m, err := cgroup2.Load(p, cgroup2.WithMountpoint(mount)); err == nil {
			return &Fence{v2: m, groups: []string{path.Join(mount, path.Dir(p))}}
		}
	case cgroups.Legacy, cgroups.Hybrid:
		paths, err := cgroup1.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			return nil
		}
		in := map[cgroup1.Name]bool{}
		for _, n := range []cgroup1.Name{cgroup1.Cpu, cgroup1.Memory} {
			if p, ok := paths[string(n)]; ok && path.Base(path.Dir(p)) == group {
				in[n] = true
			}
		}
		if len(in) == 0 {
			return nil
		}
		if cg, err := cgroup1.Load(cgroup1.PidPath(pid), cgroup1.WithHierarchy(only(in))); err == nil {
			above := func(n cgroup1.Name) (string, error) { return path.Dir(paths[string(n)]), nil }
			return &Fence{v1: cg, groups: groupDirs(in, above)}
		}
	}
	return nil
}

// Add moves process pid, with all its threads, into the fence.
func (f *Fence) Add(pid int) error {
	if f == nil {
		return nil
	}
	if f.v2 != nil {
		return f.v2.AddProc(uint64(pid))
	}
	return f.v1.AddProc(uint64(pid))
}

// Delete removes the fence, which must be empty.
func (f *Fence) Delete() error {
	if f == nil {
		return nil
	}
	var err error
	if f.v2 != nil {
		err = f.v2.Delete()
	} else {
		err = f.v1.Delete()
	}
	for _, dir := range f.groups {
		_ = os.Remove(dir) // refused while it has other members
	}
	return err
}

// Sweep removes the cgroups of a group that are empty: those of processes that ended while nobody watched.
func Sweep(group string) {
	var dirs []string
	switch cgroups.Mode() {
	case cgroups.Unified:
		if base, err := delegated(); err == nil {
			dirs = []string{path.Join(mount, base, group)}
		}
	case cgroups.Legacy, cgroups.Hybrid:
		dirs = groupDirs(map[cgroup1.Name]bool{cgroup1.Cpu: true, cgroup1.Memory: true}, cgroup1.NestedPath(group))
	}
	for _, dir := range dirs {
		members, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, m := range members {
			if m.IsDir() {
				_ = os.Remove(path.Join(dir, m.Name())) // refused while it holds a process
			}
		}
		_ = os.Remove(dir)
	}
}
