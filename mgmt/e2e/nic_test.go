package e2e

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
)

// netcheck returns the arguments of grailctl run for a VM on one port of net0.
func (r *rig) netcheck(port string, args ...string) []string {
	line := []string{"run", "--rm", "--engine", string(r.engine), "--memory", "64M", "--net", "net0/" + port, "--", filepath.Join(r.dir, "netcheck")}
	return append(line, args...)
}

// startServer starts a VM that answers on one port of net0 in the background, and returns when it answers.
func (r *rig) startServer(name, port string) {
	r.t.Helper()
	r.ctl("create", "--name", name, "--engine", string(r.engine), "--memory", "64M", "--net", "net0/"+port, "--", filepath.Join(r.dir, "netcheck"), "serve")
	r.ctl("start", name)
}

// plugged reports whether generation n of net0 serves so many clients.
func (r *rig) plugged(generation, clients int) func() bool {
	return func() bool {
		d := r.driver("net0")
		served := 0
		for _, c := range d.Clients {
			if c.Attached {
				served++
			}
		}
		return d.State == api.Ready && d.Generation >= generation && served == clients
	}
}

// echo starts a VM at a port that talks to another one's server until end is called: everything that comes back must be what was sent.
func (r *rig) echo(port, addr string) (end func()) {
	r.t.Helper()
	cmd := r.command(r.netcheck(port, "echo", "-time", "5m", addr)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.t.Helper()
		if err := cmd.Process.Signal(unix.SIGINT); err != nil {
			r.t.Fatal(err)
		}
		if got := code(r.t, cmd.Wait()); got != 0 || !strings.HasPrefix(out.String(), "ok: ") {
			r.t.Errorf("echo: exit code %d, %q", got, out.String())
		}
		r.t.Log(strings.TrimSpace(out.String()))
	}
}

// TestNativeNetwork plugs native VMs of two tenants into one switch. Those of one tenant reach each other, while the switch crashes in every way and
// graild with it; the other one reaches nobody.
func TestNativeNetwork(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "net", "net0", "--engine", string(r.engine), "--port", "web=1", "--port", "user=1", "--port", "other=2")
		r.startServer("server", "web")
		if out := r.ctl(r.netcheck("user", "ping", "web")...); strings.Count(out, "answer from 10.77.0.2") != 3 {
			r.t.Errorf("ping by the port's name: %q", out)
		}
		r.ctl(r.netcheck("user", "ping", "-count", "1", "server")...)
		var stats api.DriverStats
		if err := json.Unmarshal([]byte(r.ctl("driver", "stats", "net0", "--json")), &stats); err != nil || len(stats.Clients) != 1 {
			r.t.Fatalf("stats: %v, %+v", err, stats)
		}
		if k := stats.Clients[0]; k.Client != "server" || k.Disk != "web" || k.Counters["rxPackets"] < 4 || k.Counters["txPackets"] < 4 {
			r.t.Errorf("stats: %+v", k)
		}
		if out, code := r.run(nil, r.netcheck("other", "ping", "10.77.0.2")...); code != 1 || !strings.Contains(out, "no answer") {
			r.t.Errorf("another tenant's ping: exit code %d, %q", code, out)
		}
		if out, code := r.run(nil, r.netcheck("other", "ping", "web")...); code != 1 || !strings.Contains(out, "there is no name") {
			r.t.Errorf("another tenant's name: exit code %d, %q", code, out)
		}
		for _, args := range [][]string{r.netcheck("web", "serve"), r.netcheck("none", "serve")} {
			if out, code := r.run(nil, args...); code != api.ExitError || !strings.Contains(out, "in use by server") && !strings.Contains(out, `no port "none"`) {
				r.t.Errorf("%v: exit code %d, %q", args, code, out)
			}
		}

		endEcho := r.echo("user", "10.77.0.2")
		r.eventually("two VMs are plugged in", r.plugged(1, 2))
		for i, how := range []string{"kill", "fault", "hang"} {
			r.ctl("driver", "crash", "net0", "--how", how)
			r.eventually("recovered from "+how, r.plugged(i+2, 2))
		}
		r.killDaemon()
		r.eventually("adopted", r.plugged(4, 2))
		r.ctl("driver", "crash", "net0", "--how", "kill")
		r.eventually("recovered under the next graild", r.plugged(5, 2))
		pid := r.driver("net0").PID
		r.killDaemon()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			r.t.Fatal(err)
		}
		r.eventually("replaced", r.plugged(6, 2))
		endEcho()
		for i, c := range r.crashes("net0") {
			r.t.Logf("crash %d: %s, recovered in %.1f ms", i+1, c.Cause, c.RecoverMs)
		}

		if out, code := r.run(nil, "driver", "rm", "net0"); code != api.ExitError || !strings.Contains(out, "has clients: server") {
			r.t.Errorf("rm with clients: exit code %d: %s", code, out)
		}
		r.ctl("rm", "-f", "server")
		r.startServer("next", "web") // the port is free again
		r.ctl(r.netcheck("user", "ping", "-count", "1", "10.77.0.2")...)
		r.ctl("driver", "restart", "net0")
		r.ctl(r.netcheck("user", "ping", "-count", "1", "next")...) // the new switch knows the VM's name
		if out, code := r.run(nil, r.netcheck("user", "ping", "server")...); code != 1 || !strings.Contains(out, "there is no name") {
			r.t.Errorf("the name of a VM that is gone: exit code %d, %q", code, out)
		}
		r.ctl("rm", "-f", "next")
		r.eventually("no clients", func() bool { return len(r.driver("net0").Clients) == 0 })
		r.ctl("driver", "rm", "net0")
	})
}
