package daemon

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// hostMemory returns how many bytes of memory processes of this one's can still get: what the host has available, or less where a control
// group bounds it; false when the host does not say.
func hostMemory() (uint64, bool) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	left, found := uint64(0), false
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			left, found = n<<10, err == nil
		}
	}
	for _, g := range memoryGroups() {
		limit, ok1 := readNumber(g.dir, g.limit)
		used, ok2 := readNumber(g.dir, g.used)
		if ok1 && ok2 && limit < 1<<60 { // version 1 writes a number near 2^63 for none
			left = min(left, limit-min(used, limit))
		}
	}
	return left, found
}

// memoryGroup is a control group that bounds memory.
type memoryGroup struct{ dir, limit, used string }

// memoryGroups returns the groups that this process is in, from the innermost outwards (cgroups(7)). They are looked for where systems mount
// the hierarchies.
func memoryGroups() (list []memoryGroup) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		root, g := "/sys/fs/cgroup/memory", memoryGroup{limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes"}
		switch {
		case f[0] == "0" && f[1] == "":
			root, g = "/sys/fs/cgroup", memoryGroup{limit: "memory.max", used: "memory.current"}
		case f[1] != "memory":
			continue
		}
		for path := filepath.Clean("/" + f[2]); ; path = filepath.Dir(path) {
			g.dir = root + path
			list = append(list, g)
			if path == "/" {
				break
			}
		}
	}
	return list
}

// readNumber reads a file with one number; false for one that is not there or says "max".
func readNumber(dir, name string) (uint64, bool) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil
}
