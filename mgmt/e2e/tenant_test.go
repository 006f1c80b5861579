package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/engine"
)

// load returns the arguments that run the example load in a VM.
func (r *rig) load(flags []string, args ...string) []string {
	list := append([]string{"run", "--rm", "--engine", string(r.engine)}, flags...)
	return append(append(list, "--", filepath.Join(r.dir, "load")), args...)
}

// A guest that starts threads without end is stopped at its own bound, and nobody else is concerned.
func TestForkBomb(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("tenant", "create", "bomb", "--threads", "100")
		if out, code := r.run(nil, r.load([]string{"--tenant", "bomb"}, "-kind", "fork")...); code == 0 || !strings.Contains(out, "tenant bomb has 100 threads free of 100 threads") {
			t.Errorf("more threads than the tenant has: exit code %d, output %q", code, out)
		}
		out, code := r.run(nil, r.load([]string{"--tenant", "bomb", "--threads", "24", "--env", "GOTRACEBACK=none"}, "-kind", "fork", "-for", "20s")...)
		// The Go runtime gives up when it gets no thread.
		if code != 2 || !strings.Contains(out, "failed to create new OS thread") {
			t.Errorf("exit code %d, output %q", code, out[:min(len(out), 2000)])
		}
		r.ctl(r.guest(nil, "echo")...)
		r.ctl("tenant", "rm", "bomb")
	})
}

// Where no cgroup can be used, the VMM keeps to the cap by itself; a guest that it holds back can be ended as any other.
func TestThrottledByItsVMM(t *testing.T) {
	f, err := engine.KVM()
	if err != nil {
		t.Skip("SKIPPED, NO ENGINE:", err)
	}
	f.Close()
	t.Setenv("GRAIL_CGROUPS", "off")
	r := newRig(t, hv.EngineKVM)
	out, code := r.run(nil, r.load([]string{"--cpu", "0.1"}, "-kind", "arith", "-for", "300ms")...)
	if code != 0 || !strings.Contains(out, "is kept by the VM's own process") {
		t.Errorf("exit code %d, output %q", code, out)
	}
	r.ctl("create", "--name", "held", "--engine", string(r.engine), "--cpu", "0.02", "--", filepath.Join(r.dir, "load"), "-for", "10m")
	r.ctl("start", "held")
	r.ctl("stop", "-t", "0", "held")
	r.ctl("start", "held")
	r.ctl("set", "held", "--cpu", "0")
	r.ctl("stop", "held")
}

// The budget reaches the thread that runs the guest's first one, and the reservation is part of the sum.
func TestRealTime(t *testing.T) {
	onEngines(t, func(r *rig) {
		if os.Geteuid() != 0 {
			t.Skip("SKIPPED: SCHED_DEADLINE needs root")
		}
		if out, code := r.run(nil, r.load([]string{"--rt", "21ms/20ms"}, "-kind", "period")...); code == 0 || !strings.Contains(out, "real-time budget") {
			t.Errorf("more than all: exit code %d, output %q", code, out)
		}
		r.ctl("create", "--name", "rt", "--engine", string(r.engine), "--rt", "1ms/20ms", "--", filepath.Join(r.dir, "load"), "-kind", "period", "-work", "1ms", "-for", "10m")
		r.ctl("start", "rt")
		var v struct {
			PID   int
			Notes []string
		}
		scheduled := func() bool {
			if err := json.Unmarshal([]byte(r.ctl("inspect", "--json", "rt")), &v); err != nil {
				t.Fatal(err)
			}
			return hasDeadline(v.PID) || len(v.Notes) > 0
		}
		r.eventually("a thread has a deadline", scheduled)
		if len(v.Notes) > 0 {
			t.Errorf("notes: %v", v.Notes)
		}
		r.ctl("set", "rt", "--rt", "0")
		if hasDeadline(v.PID) {
			t.Error("the budget is still there")
		}
		r.ctl("stop", "rt")
	})
}

// hasDeadline reports whether a thread of a process, or of a child of it, is under SCHED_DEADLINE: policy 6 (proc(5), /proc/pid/stat field 41).
func hasDeadline(pid int) bool {
	stats, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
	children, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		if fields := strings.Fields(rest); len(fields) > 38 && fields[38] == "6" {
			return true
		}
	}
	for _, f := range children {
		b, _ := os.ReadFile(f)
		for _, c := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(c); err == nil && n != pid && hasDeadline(n) {
				return true
			}
		}
	}
	return false
}
