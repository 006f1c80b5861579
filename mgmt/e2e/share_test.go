package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grailos/grail/mgmt/api"
)

// operations returns how many requests a driver has served for a VM.
func (r *rig) operations(driver, vm string) (sum uint64) {
	r.t.Helper()
	var stats api.DriverStats
	// While the driver is replaced there is nobody to ask.
	out, code := r.run(nil, "driver", "stats", driver, "--json")
	if code == 0 && json.Unmarshal([]byte(out), &stats) == nil {
		for _, c := range stats.Clients {
			if c.Client == vm {
				sum += c.Counters["reads"] + c.Counters["writes"] + c.Counters["flushes"] + c.Counters["discards"]
			}
		}
	}
	return sum
}

// What a tenant has of a driver holds for its VMs at once, also with the driver's next instance, and of others nothing changes.
func TestDriverShares(t *testing.T) {
	onEngines(t, func(r *rig) {
		const cap, enough = 300, 150
		r.ctl("tenant", "create", "acme", "--device", "blk0:ops=-300,weight=200")
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "a="+r.disk(8<<20), "--disk", "b="+r.disk(8<<20))
		for vm, flags := range map[string][]string{"web": {"--tenant", "acme", "--disk", "blk0/a"}, "other": {"--disk", "blk0/b"}} {
			args := append([]string{"create", "--name", vm, "--engine", string(r.engine)}, flags...)
			r.ctl(append(args, "--", filepath.Join(r.dir, "verify"), "-disk", flags[len(flags)-1][len("blk0/"):], "-mib", "4", "-time", "1h")...)
			r.ctl("start", vm)
		}
		// A slow host may serve less, and never more.
		held := func(when string) {
			t.Helper()
			var first uint64
			var began time.Time
			r.eventually("the capped VM is served "+when, func() bool {
				began = time.Now()
				first = r.operations("blk0", "web")
				return first > 0
			})
			var n uint64
			r.eventually("the capped VM goes on "+when, func() bool { n = r.operations("blk0", "web"); return n >= first+enough })
			// The bucket's 20 ms, and what was under way.
			most := cap*time.Since(began).Seconds() + cap/50 + 32
			if got := float64(n - first); got > most {
				t.Errorf("%s: %.0f requests where %.0f were the most", when, got, most)
			}
		}
		held("with its tenant's cap")
		if out := r.ctl("driver", "share", "blk0"); !strings.Contains(out, "/acme:200") || !strings.Contains(out, "its VM and tenants") {
			t.Errorf("shares are\n%s", out)
		}
		r.ctl("driver", "crash", "blk0", "--how", "kill")
		r.eventually("the driver is there again", func() bool { return r.driver("blk0").Crashes == 1 && r.driver("blk0").State == api.Ready })
		held("by the next instance")
		// Of the VM itself, for this driver, in the tenant's group.
		r.ctl("tenant", "set", "acme", "--device", "blk0:")
		r.ctl("set", "web", "--device", "blk0:ops=-300")
		held("with its own cap")
		r.ctl("set", "web", "--device", "blk0:weight=50")
		first, began := r.operations("blk0", "web"), time.Now()
		r.eventually("the VM without a cap gets more than it was", func() bool {
			return float64(r.operations("blk0", "web")-first) > 2*cap*time.Since(began).Seconds()
		})
		r.eventually("the other VM is served", func() bool { return r.operations("blk0", "other") > 0 })
		r.ctl("stop", "web")
		r.ctl("stop", "other")
	})
}
