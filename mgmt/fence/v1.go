package fence

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// v1 is a hierarchy for each controller.
type v1 struct {
	name string

	mu   sync.Mutex
	base map[Controller]string // the cgroup below which ours are
	subs map[Controller]cgroup1.Subsystem
}

func newV1(name string) (hierarchy, error) {
	mounted, err := cgroup1.Default()
	if err != nil {
		return nil, err
	}
	h := &v1{name: name, base: map[Controller]string{}, subs: map[Controller]cgroup1.Subsystem{}}
	own := cgroup1.NestedPath("")
	for _, s := range mounted {
		c := Controller(s.Name())
		p, err := own(s.Name())
		if err != nil {
			continue // this process is not in it
		}
		h.base[c], h.subs[c] = p, s
	}
	return h, nil
}

func (h *v1) path(c Controller, group string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return path.Join(h.base[c], h.name, group)
}

func (h *v1) dir(c Controller, group string) string {
	return filepath.Join(mount, string(c), h.path(c, group))
}

// only returns a hierarchy of one controller.
func (h *v1) only(cs ...Controller) cgroup1.InitOpts {
	return cgroup1.WithHierarchy(func() (list []cgroup1.Subsystem, err error) {
		for _, c := range cs {
			s := h.subs[c]
			if s == nil {
				return nil, errors.New("not mounted")
			}
			list = append(list, s)
		}
		return list, nil
	})
}

func (h *v1) at(group string) cgroup1.Path {
	return func(n cgroup1.Name) (string, error) { return h.path(Controller(n), group), nil }
}

func (h *v1) apply(c Controller, group string, res *specs.LinuxResources) error {
	// The library would write the set to the hierarchy of shares and the other way round.
	_, err := cgroup1.New(h.at(group), res, h.only(c))
	if c == Set && err == nil && res.CPU.Cpus == "" {
		// Back to what the parent has.
		b, rerr := os.ReadFile(filepath.Join(filepath.Dir(h.dir(c, group)), "cpuset.cpus"))
		if rerr != nil {
			return rerr
		}
		return os.WriteFile(filepath.Join(h.dir(c, group), "cpuset.cpus"), b, 0)
	}
	return err
}

// Bounds of cpu.shares, and the weight of one process beside the groups (sched(7)).
const (
	minShares  = 2
	maxShares  = 262_144
	taskWeight = 1024
)

func (h *v1) weigh(l *specs.LinuxCPU, parts uint64) {
	shares := min(max(parts*maxShares/Parts, minShares), maxShares)
	l.Shares = &shares
}

func (h *v1) add(cs []Controller, group string, pid int) error {
	cg, err := cgroup1.Load(h.at(group), h.only(cs...))
	if err != nil {
		return err
	}
	return cg.AddProc(uint64(pid))
}

func (h *v1) found(pid int, name string) (string, bool) {
	paths, err := cgroup1.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", false
	}
	group, ok := "", false
	for _, c := range controllers {
		g, in := below(paths[string(c)], name)
		if !in {
			continue
		}
		if !ok || len(g) > len(group) {
			group = g
		}
		ok = true
		// A predecessor that had been started elsewhere made its groups elsewhere; there they stay.
		h.mu.Lock()
		h.base[c] = base(paths[string(c)], name)
		h.mu.Unlock()
	}
	return group, ok
}

func (h *v1) holds(cs []Controller, group string, pid int) bool {
	paths, err := cgroup1.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for _, c := range cs {
		if paths[string(c)] != h.path(c, group) {
			return false
		}
	}
	return true
}

func (h *v1) reserves() bool { return false }

func (h *v1) usage(group string) (u CPUUsage, err error) {
	b, err := os.ReadFile(filepath.Join(h.dir(Usage, group), "cpuacct.usage"))
	if err != nil {
		return u, err
	}
	if u.UsedNs, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil {
		return u, err
	}
	u.ThrottledNs, err = stat(filepath.Join(h.dir(CPU, group), "cpu.stat"), "throttled_time")
	return u, err
}

// stat reads one value of a file of names and values; 0 if it is not there.
func stat(file, name string) (uint64, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			return strconv.ParseUint(v, 10, 64)
		}
	}
	return 0, nil
}

// BesideHost returns the weight of the caller's top group, in Limits.Weight's unit, with which it counts for as much as that many busy processes of
// the host.
func BesideHost(processes int) uint64 {
	return min(max(uint64(max(processes, 1))*taskWeight*Parts/maxShares, 1), Parts)
}
