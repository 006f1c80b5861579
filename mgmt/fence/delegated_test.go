package fence

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"
)

// delegatedEnv makes the test binary a caller without privileges.
const delegatedEnv = "GRAIL_TEST_DELEGATED"

// someUser is a user that there need not be.
const someUser = 54321

// give makes a cgroup the user's, as systemd does it.
func give(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	for _, f := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		if err := os.Chown(filepath.Join(dir, f), someUser, someUser); err != nil {
			t.Fatal(err)
		}
	}
}

// A user to whom the system delegates some controllers alone has those, and knows about the others; one to whom it delegates none knows that.
func TestDelegated(t *testing.T) {
	if os.Getenv(delegatedEnv) != "" {
		tree, f := explore("delegated")
		if n, err := number(filepath.Join(tree.Dir(Memory, "v.web"), "memory.max")); err == nil {
			f.Cap = fmt.Sprint(n)
		}
		tree.Sweep(func(string) bool { return false })
		f.Left = tree.Groups()
		_ = json.NewEncoder(os.Stdout).Encode(f)
		return
	}
	if os.Geteuid() != 0 || cgroups.Mode() != cgroups.Unified {
		t.Skip("SKIPPED: only root can delegate, and only cgroups v2 can be delegated")
	}
	look := func(cgroup string) found {
		t.Helper()
		dir, err := os.Open(cgroup)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestDelegated$") // whoever may reach it by its path
		cmd.Env = append(os.Environ(), delegatedEnv+"=1")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Credential: &syscall.Credential{Uid: someUser, Gid: someUser}}
		out, err := cmd.Output()
		var f found
		if err == nil {
			err = json.NewDecoder(strings.NewReader(string(out))).Decode(&f)
		}
		if err != nil || f.Error != "" || f.Apply != "" || len(f.Left) > 0 {
			t.Fatalf("%v: %s", err, out)
		}
		return f
	}
	slice := filepath.Join(mount, fmt.Sprintf("grail-test-%d.slice", os.Getpid()))
	if err := os.Mkdir(slice, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(slice); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range []string{mount, slice} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory +pids"), 0); err != nil {
			t.Skipf("SKIPPED: %v", errors.Join(err, unix.ENOTSUP))
		}
	}
	service := filepath.Join(slice, fmt.Sprintf("user@%d.service", someUser))
	give(t, service)
	give(t, filepath.Join(service, "app"))
	f := look(filepath.Join(service, "app"))
	if f.Can[Memory] != "" || f.Can[Threads] != "" || f.Can[CPU] == "" || f.Can[Set] == "" || f.Cap != fmt.Sprint(64<<20) {
		t.Errorf("memory and threads are delegated: %+v", f)
	}
	plain := filepath.Join(slice, "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(plain) })
	f = look(plain)
	for _, c := range controllers {
		if !strings.Contains(f.Can[c], "not delegated to you") {
			t.Errorf("nothing is delegated, and controller %s says %q", c, f.Can[c])
		}
	}
}
