package fence

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Orphans are trees of other callers in which nothing runs: the directory of each, and what tells its groups from any others that were ever there.
type Orphans map[string]string

// Orphans returns the trees beside this one whose names begin with prefix and in which no process is. A caller that lives has such a tree for no longer than it
// takes to start a process; one that was killed, and has no successor, for ever.
func (t *Tree) Orphans(prefix string) Orphans {
	list := Orphans{}
	if t.h == nil {
		return list
	}
	for _, c := range controllers {
		if t.can[c] != nil {
			continue
		}
		top := filepath.Dir(t.h.dir(c, ""))
		entries, err := os.ReadDir(top)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) || e.Name() == t.name {
				continue
			}
			dir := filepath.Join(top, e.Name())
			if groups, mark, ok := empty(dir); ok && len(groups) > 0 {
				list[dir] = mark
			}
		}
	}
	return list
}

// RemoveOrphans removes those of earlier orphans that are the same still, and returns how many trees are gone.
func (t *Tree) RemoveOrphans(earlier Orphans) (removed int) {
	for dir, mark := range earlier {
		groups, now, ok := empty(dir)
		if !ok || now != mark {
			continue
		}
		for _, g := range slices.Backward(groups) {
			_ = os.Remove(g) // refused if something runs there after all
		}
		if _, err := os.Stat(dir); os.IsNotExist(err) {
			removed++
		}
	}
	return removed
}

// empty lists the groups of a tree, parents first, with their inodes' numbers, which the kernel does not use again. False: there is none, or a process is in it.
func empty(top string) (groups []string, mark string, ok bool) {
	var b strings.Builder
	err := filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		procs, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			return err
		}
		if len(procs) > 0 {
			return unix.EBUSY
		}
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			return err
		}
		groups = append(groups, p)
		fmt.Fprintln(&b, st.Ino, p)
		return nil
	})
	return groups, b.String(), err == nil
}
