package fence

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"
)

// readOnlyEnv makes the test binary a caller in a mount namespace of its own, in which the cgroup file systems that its value names by their places are
// read-only.
const readOnlyEnv = "GRAIL_TEST_READ_ONLY"

// found is what such a caller finds.
type found struct {
	Can   map[Controller]string // why not; empty: it can
	Apply string
	Cap   string // of the group that it made
	Left  []string
	Error string
}

// explore opens a tree and makes a group with every bound in it, as far as that is possible.
func explore(name string) (tree *Tree, f found) {
	tree = Open(fmt.Sprintf("grail-test-%d-%s", os.Getpid(), name))
	f.Can = map[Controller]string{}
	for _, c := range controllers {
		if err := tree.Can(c); err != nil {
			f.Can[c] = err.Error()
			if !errors.Is(err, ErrUnavailable) {
				f.Error = "another error than ErrUnavailable"
			}
		}
	}
	if err := tree.ApplyAll([]Group{{"", Limits{}}, {"v.web", Limits{Weight: Parts, CapMilli: 500, MemoryBytes: 64 << 20, Threads: 50, CPUs: "0"}}}); err != nil {
		f.Apply = err.Error()
	}
	return tree, f
}

func readOnly(places []string) found {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return found{Error: err.Error()}
	}
	for _, p := range places {
		if err := unix.Mount("", p, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return found{Error: fmt.Sprintf("%s: %v", p, err)}
		}
	}
	tree, f := explore("readonly")
	if err := tree.Add("v.web", os.Getpid()); err != nil {
		f.Apply += err.Error()
	}
	for _, name := range []string{"cpu.cfs_quota_us", "cpu.max"} {
		if b, err := os.ReadFile(filepath.Join(tree.Dir(CPU, "v.web"), name)); err == nil {
			f.Cap = strings.TrimSpace(string(b))
		}
	}
	for _, c := range controllers { // it is not to be in its way when the groups are removed
		if tree.Can(c) == nil {
			_ = os.WriteFile(filepath.Join(filepath.Dir(filepath.Dir(tree.Dir(c, "v.web"))), "cgroup.procs"), []byte("0"), 0)
		}
	}
	tree.Sweep(func(string) bool { return false })
	f.Left = tree.Groups()
	return f
}

// Cgroups that are mounted read-only, as in many containers, all of them or some: what cannot be enforced is known and said, and costs nothing else.
func TestReadOnly(t *testing.T) {
	if places := os.Getenv(readOnlyEnv); places != "" {
		_ = json.NewEncoder(os.Stdout).Encode(readOnly(strings.Split(places, ":")))
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can mount")
	}
	open(t, CPU, Memory) // skips without cgroups
	all := []string{mount}
	one := ""
	if cgroups.Mode() != cgroups.Unified {
		all = nil
		for _, c := range controllers {
			p := filepath.Join(mount, string(c))
			if real, err := filepath.EvalSymlinks(p); err == nil && !slices.Contains(all, real) {
				all = append(all, real)
			}
			if c == Memory {
				one = p
			}
		}
	}
	look := func(places ...string) found {
		t.Helper()
		cmd := exec.Command(os.Args[0], "-test.run=^TestReadOnly$")
		cmd.Env = append(os.Environ(), readOnlyEnv+"="+strings.Join(places, ":"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var f found
		if err := json.NewDecoder(strings.NewReader(string(out))).Decode(&f); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if f.Error != "" {
			t.Fatal(f.Error)
		}
		if f.Apply != "" || len(f.Left) > 0 {
			t.Errorf("%v read-only: %s; left: %v", places, f.Apply, f.Left)
		}
		return f
	}
	f := look(all...)
	for _, c := range controllers {
		if !strings.Contains(f.Can[c], "read-only") {
			t.Errorf("all are read-only, and controller %s says %q", c, f.Can[c])
		}
	}
	if f.Cap != "" {
		t.Errorf("a cap of %s in a file system that is read-only", f.Cap)
	}
	if one == "" {
		return
	}
	f = look(one)
	if !strings.Contains(f.Can[Memory], "read-only") || f.Can[CPU] != "" || f.Cap != "10000" {
		t.Errorf("memory alone is read-only: %+v", f)
	}
}
