package e2e

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
)

// portStats returns what one port of net0 counted.
func (r *rig) portStats(port string) map[string]uint64 {
	r.t.Helper()
	var s api.DriverStats
	r.eventually("the driver counts", func() bool {
		out, code := r.run(nil, "driver", "stats", "net0", "--json")
		return code == 0 && json.Unmarshal([]byte(out), &s) == nil
	})
	i := slices.IndexFunc(s.Clients, func(k api.ClientStats) bool { return k.Disk == port })
	if i < 0 {
		r.t.Fatalf("port %s counts nothing: %+v", port, s.Clients)
	}
	return s.Clients[i].Counters
}

// TestSwitchState has a VM talk to a host whose address the switch has learned, and kills the switch again and again: it never floods a frame to the port
// of a third VM, and its counters go on.
func TestSwitchState(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "net", "net0", "--engine", string(r.engine), "--port", "user=1", "--port", "bridge=1,unpinned", "--port", "spy=1,unpinned")
		r.startServer("spy", "spy")
		r.ctl("create", "--name", "nested", "--engine", string(r.engine), "--memory", "64M", "--net", "net0/bridge", "--",
			filepath.Join(r.dir, "netcheck"), "-as", "10.77.0.200", "serve")
		r.ctl("start", "nested")
		echo := r.command(r.netcheck("user", "echo", "-time", "5m", "10.77.0.200")...)
		var out bytes.Buffer
		echo.Stdout, echo.Stderr = &out, &out
		if err := echo.Start(); err != nil {
			r.t.Fatal(err)
		}
		r.eventually("three VMs are plugged in", r.plugged(1, 3))
		r.eventually("they talk", func() bool { return r.portStats("user")["rxPackets"] > 5 })
		last := r.portStats("user")
		generation := 1
		check := func(what string) {
			r.t.Helper()
			generation++
			r.eventually("recovered from "+what, r.plugged(generation, 3))
			now := r.portStats("user")
			if now["flooded"] != 0 || now["txPackets"] < last["txPackets"] || now["txBytes"] < last["txBytes"] || now["rxPackets"] < last["rxPackets"] {
				r.t.Errorf("after %s: %v, before it: %v", what, now, last)
			}
			r.eventually("they talk on", func() bool { return r.portStats("user")["rxPackets"] > now["rxPackets"]+2 })
			if last = r.portStats("user"); last["flooded"] != 0 {
				r.t.Errorf("after %s: %v", what, last)
			}
		}
		for _, how := range []string{"kill", "fault"} {
			r.ctl("driver", "crash", "net0", "--how", how)
			check(how)
		}
		for i, c := range r.crashes("net0") {
			if c.State == nil || c.State.Items+c.State.Records == 0 {
				r.t.Errorf("crash %d: the next instance took over %+v", i, c.State)
			}
		}
		if out := r.ctl("driver", "crashes", "net0"); !strings.Contains(out, "  state      ") {
			r.t.Errorf("driver crashes: %q", out)
		}
		r.killDaemon()
		r.ctl("driver", "crash", "net0", "--how", "kill")
		check("a crash under the next graild")
		r.ctl("driver", "restart", "net0")
		check("a restart")
		var s api.DriverState
		if err := json.Unmarshal([]byte(r.ctl("driver", "state", "net0", "--json")), &s); err != nil || s.Checkpoints == 0 || s.Items+s.Records == 0 {
			r.t.Errorf("driver state: %+v, %v", s, err)
		}
		if err := echo.Process.Signal(unix.SIGINT); err != nil {
			r.t.Fatal(err)
		}
		if got := code(r.t, echo.Wait()); got != 0 || !strings.HasPrefix(out.String(), "ok: ") {
			r.t.Errorf("echo: exit code %d, %q", got, out.String())
		}
		r.ctl("rm", "-f", "nested", "spy")
	})
}
