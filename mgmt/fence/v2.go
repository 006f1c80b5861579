package fence

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// v2 is the one hierarchy of all controllers.
type v2 struct {
	name string

	mu   sync.Mutex
	base string
}

func newV2(name string) (hierarchy, error) {
	base, err := delegated()
	if err != nil {
		return nil, err
	}
	return &v2{name: name, base: base}, nil
}

// delegated returns the v2 cgroup under which the caller may make its own: the root for root, else its systemd user service, which the system
// delegates to the user.
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

func (h *v2) path(group string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return path.Join(h.base, h.name, group)
}

func (h *v2) dir(_ Controller, group string) string { return filepath.Join(mount, h.path(group)) }

// convert returns what a controller is to be told, as v2 has it.
func (h *v2) convert(c Controller, res *specs.LinuxResources) *cgroup2.Resources {
	r := cgroup2.ToResources(res)
	switch {
	case c == Memory:
		r.Memory.Low, r.Memory.Min = nil, res.Memory.Reservation
	case c == Usage:
		r.CPU = &cgroup2.CPU{} // counted where shares are
	case c == CPU:
		if res.CPU.Quota != nil && *res.CPU.Quota < 0 {
			r.CPU.Max = cgroup2.NewCPUMax(nil, res.CPU.Period) // there is no -1 here
		}
		r.CPU.Weight = res.CPU.Shares // in v2's unit already: see weigh
	}
	return r
}

func (h *v2) apply(c Controller, group string, res *specs.LinuxResources) error {
	if c != Set {
		_, err := cgroup2.NewManager(mount, h.path(group), h.convert(c, res))
		return err
	}
	// The library switches this controller on only together with that of shares, and only where there is a value to write: none stands for the parent's.
	if err := os.MkdirAll(h.dir(c, group), 0o755); err != nil {
		return err
	}
	m, err := cgroup2.Load(h.path(group), cgroup2.WithMountpoint(mount))
	if err == nil {
		err = m.ToggleControllers([]string{string(Set)}, cgroup2.Enable)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(h.dir(c, group), "cpuset.cpus"), []byte(res.CPU.Cpus+"\n"), 0)
}

// Bounds of cpu.weight (Linux, cgroup-v2.rst).
const maxWeight = 10_000

func (h *v2) weigh(l *specs.LinuxCPU, parts uint64) {
	weight := min(max(parts*maxWeight/Parts, 1), maxWeight)
	l.Shares = &weight // apply takes it over as it is
}

func (h *v2) add(_ []Controller, group string, pid int) error {
	m, err := cgroup2.Load(h.path(group), cgroup2.WithMountpoint(mount))
	if err != nil {
		return err
	}
	return m.AddProc(uint64(pid))
}

func (h *v2) found(pid int, name string) (string, bool) {
	p, err := cgroup2.PidGroupPath(pid)
	if err != nil {
		return "", false
	}
	group, ok := below(p, name)
	if ok {
		h.mu.Lock()
		h.base = base(p, name)
		h.mu.Unlock()
	}
	return group, ok
}

func (h *v2) holds(_ []Controller, group string, pid int) bool {
	p, err := cgroup2.PidGroupPath(pid)
	return err == nil && p == h.path(group)
}

func (h *v2) reserves() bool { return true }

func (h *v2) usage(group string) (u CPUUsage, err error) {
	file := filepath.Join(h.dir(CPU, group), "cpu.stat")
	if u.UsedNs, err = stat(file, "usage_usec"); err != nil {
		return u, err
	}
	u.ThrottledNs, err = stat(file, "throttled_usec")
	u.UsedNs, u.ThrottledNs = u.UsedNs*1000, u.ThrottledNs*1000
	return u, err
}
