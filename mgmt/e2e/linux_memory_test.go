package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// TestLinuxMemory has a Linux VM with a reservation give memory back by its balloon, use it again, and end when it does not give.
func TestLinuxMemory(t *testing.T) {
	r := linuxRig(t)
	r.ctl("create", "--personality", "linux", "--name", "tux", "--memory", "256M", "--memory-reserved", "64M")
	r.ctlWithin(linuxLimit, "start", "tux")
	in := func(script string) string {
		t.Helper()
		out, code := r.runWithin(linuxLimit, nil, "exec", "tux", "--", "sh", "-c", script)
		if code != 0 {
			t.Fatalf("%s: exit code %d, output %.2000q\n%s", script, code, out, r.ctl("logs", "tux"))
		}
		return out
	}
	in("mkdir -p /m && mount -t tmpfs -o size=200m none /m && dd if=/dev/zero of=/m/x bs=1M count=100 2>/dev/null && rm /m/x")
	v := r.vm("tux")
	if s := v.Status.Stats; s.MemoryUsed < 100*mib || s.Memory.Prefaulted != 64*mib {
		t.Fatalf("%+v", s)
	}
	out := r.reclaim("tux", "64M", "--by", "2m")
	if out.Given < 64*mib || out.Ended || out.After > out.Target || !out.Told {
		t.Errorf("%+v", out)
	}
	if out, code := r.run(nil, "reclaim", "tux", "--to", "60M"); code == 0 || !strings.Contains(out, "64M are reserved") {
		t.Errorf("less than reserved: %d, %q", code, out)
	}
	in("dd if=/dev/zero of=/m/x bs=1M count=16 2>/dev/null && rm /m/x")
	r.ctl("reclaim", "tux", "--all")
	in("dd if=/dev/zero of=/m/x bs=1M count=140 2>/dev/null") // more than it had in between, and it stays
	if s := r.vm("tux").Status.Stats; s.MemoryUsed < 140*mib || s.Memory.Bound != 0 || s.Memory.Given != out.Given {
		t.Errorf("with all its memory again: %+v", s)
	}
	// Its pages are in use: it has nothing to give in time.
	cmd := r.command("reclaim", "--json", "tux", "--to", "72M", "--by", "300ms")
	b, err := cmd.Output()
	var forced api.ReclaimedVM
	if err != nil || json.Unmarshal(b, &forced) != nil || !forced.Ended || forced.Cause != hv.CauseMemory || !strings.Contains(forced.Message, "would have corrupted it") {
		t.Errorf("%s, %v", b, err)
	}
	if rep := r.vm("tux").Report; rep == nil || rep.Cause != hv.CauseMemory {
		t.Errorf("%+v", rep)
	}
}
