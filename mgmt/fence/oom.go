package fence

import (
	"path"
	"path/filepath"
)

// OOMKills returns how many processes of a group the kernel has killed for want of memory since the group was made; 0 where that is not counted: in a group
// without a bound of memory (Linux, cgroup-v1/memory.rst §10, cgroup-v2.rst memory.events).
func (t *Tree) OOMKills(group string) uint64 {
	if t.can[Memory] != nil {
		return 0
	}
	for _, name := range []string{"memory.oom_control", "memory.events"} {
		if n, err := stat(filepath.Join(t.h.dir(Memory, group), name), "oom_kill"); err == nil && n > 0 {
			return n
		}
	}
	return 0
}

// Full returns the innermost group, from the one at the path upwards, that has reached its bound of memory, and the bound in bytes. False: none has.
func (t *Tree) Full(group string) (full string, limit uint64, ok bool) {
	if t.can[Memory] != nil {
		return "", 0, false
	}
	for ; ; group = path.Dir(group) {
		if group == "." {
			group = ""
		}
		if t.refused(group) > 0 {
			for _, name := range []string{"memory.limit_in_bytes", "memory.max"} {
				if n, err := number(filepath.Join(t.h.dir(Memory, group), name)); err == nil {
					return group, n, n < anyMemory
				}
			}
		}
		if group == "" {
			return "", 0, false
		}
	}
}

// refused returns how often a group's own bound was in somebody's way.
func (t *Tree) refused(group string) uint64 {
	if n, err := number(filepath.Join(t.h.dir(Memory, group), "memory.failcnt")); err == nil {
		return n
	}
	n, _ := stat(filepath.Join(t.h.dir(Memory, group), "memory.events.local"), "max") // version 2, Linux 5.2
	return n
}
