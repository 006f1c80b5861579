package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/engine"
)

const mib = 1 << 20

// cache starts the example cache in a VM of 128 MiB and waits until it has its 64 entries.
func (r *rig) cache(name string, flags []string, args ...string) {
	r.t.Helper()
	line := append([]string{"create", "--name", name, "--engine", string(r.engine), "--memory", "128M"}, flags...)
	r.ctl(append(append(line, "--", filepath.Join(r.dir, "cache"), "-for", "10m"), args...)...)
	r.ctl("start", name)
	r.eventually("the cache is full", func() bool { return strings.Contains(r.ctl("logs", name), "has 64 entries") })
}

// reclaim runs grailctl reclaim.
func (r *rig) reclaim(name string, args ...string) (out api.ReclaimedVM) {
	r.t.Helper()
	if err := json.Unmarshal([]byte(r.ctl(append([]string{"reclaim", "--json", name}, args...)...)), &out); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// vm describes a VM.
func (r *rig) vm(name string) api.VM {
	r.t.Helper()
	v, err := r.client.VM(context.Background(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// A guest that is told to gives memory back, of its own choice, and goes on.
func TestGuestGives(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.cache("c", nil)
		out := r.reclaim("c", "32M", "--by", "5m")
		if out.Given < 32*mib || out.Taken != 0 || out.Ended || !out.Told || out.After > out.Target {
			t.Errorf("%+v", out)
		}
		r.eventually("the guest says what it dropped", func() bool { return strings.Contains(r.ctl("logs", "c"), "dropped 3") })
		v := r.vm("c")
		if m := v.Status.Stats.Memory; v.State != api.Running || m.Bound != out.Bound || m.Given != out.Given || m.Taken != 0 || m.Orders != 1 {
			t.Errorf("%s, %+v", v.State, m)
		}
		if text := r.ctl("inspect", "c"); !strings.Contains(text, "memory bound") || !strings.Contains(text, "given back") {
			t.Errorf("inspect says %q", text)
		}
		// A limit below what is used takes the same path.
		r.ctl("set", "c", "--memory-limit", "32M")
		if v := r.vm("c"); v.MemoryLimit != 32*mib || v.Status.Stats.MemoryUsed > 32*mib || v.Status.Stats.Memory.Taken != 0 {
			t.Errorf("after a limit of 32M: %d, %+v", v.MemoryLimit, v.Status.Stats)
		}
		r.ctl("set", "c", "--memory-limit", "0")
		if v := r.vm("c"); v.MemoryLimit != 0 || v.Status.Stats.Memory.Bound != 0 {
			t.Errorf("without a limit: %d, %+v", v.MemoryLimit, v.Status.Stats.Memory)
		}
		for _, args := range [][]string{{"c"}, {"c", "32M", "--all"}, {"c", "many"}, {"c", "0"}, {"c", "1M", "--by", "-1s"}, {"c", "1G"}, {"c", "--to", "1M"}, {"nobody", "1M"}} {
			if out, code := r.run(nil, append([]string{"reclaim"}, args...)...); code == 0 {
				t.Errorf("reclaim %v: %q", args, out)
			}
		}
		if events := r.ctl("events"); !strings.Contains(events, "memory reclaimed") {
			t.Errorf("no event: %q", events)
		}
		r.ctl("stop", "-t", "0", "c")
	})
}

// What a guest does not give is taken, and it is told what that was; one that cannot bear it ends, and says why.
func TestGuestIsForced(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.cache("c", nil, "-ignore")
		if r.engine == hv.EngineProcess {
			out := r.reclaim("c", "32M", "--by", "100ms")
			if !out.Ended || out.Cause != hv.CauseMemory || !strings.Contains(out.Message, "cannot take the rest by force") {
				t.Errorf("%+v", out)
			}
			return
		}
		out := r.reclaim("c", "32M", "--by", "100ms")
		if out.Given != 0 || out.Taken < 32*mib || out.Ended || out.Told || out.After > out.Target {
			t.Errorf("%+v", out)
		}
		r.eventually("the guest finds out", func() bool { return strings.Contains(r.ctl("logs", "c"), "32 MiB in 1 pieces were taken: lost 3") })
		if v := r.vm("c"); v.State != api.Running || v.Status.Stats.Memory.Taken != out.Taken {
			t.Errorf("%s, %+v", v.State, v.Status)
		}
		r.ctl("stop", "-t", "0", "c")

		r.cache("f", nil, "-ignore", "-fragile")
		out = r.reclaim("f", "48M", "--by", "0s")
		r.eventually("the guest ends", func() bool { return r.vm("f").State == api.Exited })
		if rep := r.vm("f").Report; out.Taken < 48*mib || rep.Cause != hv.CauseMemory || !strings.Contains(rep.Message, "which was taken by force") {
			t.Errorf("%+v, then %s: %s", out, rep.Cause, rep.Message)
		}
	})
}

// What is reserved has the host's memory from the start, and is never asked for.
func TestReservedMemory(t *testing.T) {
	f, err := engine.KVM()
	if err != nil {
		t.Skip("SKIPPED, NO ENGINE:", err)
	}
	f.Close()
	r := newRig(t, hv.EngineKVM)
	r.ctl("create", "--name", "v", "--engine", "kvm", "--memory", "96M", "--memory-reserved", "64M", "--", filepath.Join(r.dir, "load"), "-kind", "fill", "-for", "10m")
	r.ctl("start", "v")
	r.eventually("it is prefaulted", func() bool { return r.vm("v").Status.Stats.Memory.Prefaulted == 64*mib })
	v := r.vm("v")
	if rss := residentOf(t, v.PID); rss < 64*mib || v.Status.Stats.MemoryUsed > 32*mib {
		t.Errorf("%d bytes have memory for a guest that uses %d of 64M reserved", rss, v.Status.Stats.MemoryUsed)
	}
	for _, args := range [][]string{{"v", "1M"}, {"v", "--to", "63M"}} {
		if out, code := r.run(nil, append([]string{"reclaim"}, args...)...); code == 0 || !strings.Contains(out, "64M are reserved for it, which is never taken") {
			t.Errorf("reclaim %v: %d, %q", args, code, out)
		}
	}
	if out, code := r.run(nil, "set", "v", "--memory-limit", "32M"); code == 0 || !strings.Contains(out, "reserved memory") {
		t.Errorf("a limit below: %d, %q", code, out)
	}
	// More or less of it, while it runs.
	r.ctl("set", "v", "--memory-reserved", "80M")
	if rss := residentOf(t, v.PID); rss < 80*mib || r.vm("v").Status.Stats.Memory.Prefaulted != 80*mib {
		t.Errorf("%d bytes have memory for a guest with 80M reserved: %+v", rss, r.vm("v").Status.Stats.Memory)
	}
	r.ctl("set", "v", "--memory-reserved", "16M")
	if rss := residentOf(t, v.PID); rss > 64*mib {
		t.Errorf("%d bytes have memory for a guest with 16M reserved", rss)
	}
	r.ctl("stop", "-t", "0", "v")
	// On engine process it is the host's kernel's to give.
	r.ctl("create", "--name", "p", "--engine", "process", "--memory", "64M", "--memory-reserved", "32M", "--", filepath.Join(r.dir, "load"), "-for", "10m")
	r.ctl("start", "p")
	if text := r.ctl("inspect", "p"); !strings.Contains(text, "not prefaulted") {
		t.Errorf("inspect says %q", text)
	}
	r.ctl("stop", "-t", "0", "p")
}

// residentOf returns how much memory a process has, in bytes.
func residentOf(t *testing.T, pid int) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
