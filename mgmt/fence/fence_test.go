package fence

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestFence(t *testing.T) {
	group := fmt.Sprintf("grail-test-%d", os.Getpid())
	f, err := New(group, "web", Limits{CPU: 0.5, MemoryBytes: 64 << 20})
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if Of(group, cmd.Process.Pid) != nil {
		t.Error("a process outside is said to be inside")
	}
	if err := f.Add(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	cg, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if !strings.Contains(string(cg), group+"/web") {
		t.Errorf("the process is in %s", cg)
	}
	again := Of(group, cmd.Process.Pid)
	if again == nil {
		t.Fatal("the fence is not found again")
	}
	if Of("other", cmd.Process.Pid) != nil {
		t.Error("found in a group where it is not")
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := again.Delete(); err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/", "/sys/fs/cgroup/*/*/", "/sys/fs/cgroup/*/*/*/"} {
		if left, _ := filepath.Glob(pattern + group); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestSweep(t *testing.T) {
	group := fmt.Sprintf("grail-test-sweep-%d", os.Getpid())
	f, err := New(group, "gone", Limits{CPU: 1, MemoryBytes: 64 << 20})
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	Sweep(group)
	for _, dir := range f.groups {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("left behind: %s", dir)
		}
	}
}

func TestNilFence(t *testing.T) {
	var f *Fence
	if err := f.Add(1); err != nil {
		t.Error(err)
	}
	if err := f.Delete(); err != nil {
		t.Error(err)
	}
}
