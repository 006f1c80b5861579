package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/grailos/grail/hv"
)

// A driver that breaks the rules of a ring is found out, blamed and replaced, whatever it does, while its client writes and verifies: the client loses
// nothing and sees no error.
func TestDriverLies(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20))
		lies := []string{"used-jump", "used-back", "used-id", "used-twice", "used-length", "used-nothing", "log", "log-entry", "log-index", "wild", "defame"}
		v := r.verify("blk0/d", 5*time.Minute)
		r.eventually("the client", r.serving("blk0", 1))
		for i, lie := range lies {
			r.lie("blk0", "lie:"+lie)
			r.eventually("found out "+lie, func() bool { return len(r.crashes("blk0")) == i+1 })
			r.eventually("recovered from "+lie, r.serving("blk0", 1))
		}
		r.ctl("stop", "v")
		v.wait()
		for i, c := range r.crashes("blk0") {
			if c.Cause != hv.CauseProtocol || !strings.HasPrefix(c.Injected, "lie:") || !strings.Contains(c.Message, "rules of a ring") {
				r.t.Errorf("crash %d: %s, %s, injected %q", i, c.Cause, c.Message, c.Injected)
			}
		}
		r.ctl("driver", "rm", "blk0")
	})
}

// A switch that breaks the rules of its rings, which have no log, is found out as well, while two VMs talk through it: what it delivers is what was sent, and
// who gets no answer asks again.
func TestSwitchLies(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "net", "net0", "--engine", string(r.engine), "--port", "web", "--port", "user")
		r.startServer("server", "web")
		r.ctl(r.netcheck("user", "ping", "-count", "1", "web")...)
		endEcho := r.echo("user", "10.77.0.2")
		r.eventually("two VMs are plugged in", r.plugged(1, 2))
		lies := []string{"used-jump", "used-back", "used-id", "used-length", "wild"}
		for i, lie := range lies {
			r.lie("net0", "lie:"+lie)
			r.eventually("found out "+lie, func() bool { return len(r.crashes("net0")) == i+1 })
			r.eventually("recovered from "+lie, r.plugged(i+2, 2))
		}
		endEcho()
		for i, c := range r.crashes("net0") {
			if c.Cause != hv.CauseProtocol || c.Injected != "lie:"+lies[i] || !strings.Contains(c.Message, "rules of a ring") {
				r.t.Errorf("crash %d: %s, %s, injected %q", i, c.Cause, c.Message, c.Injected)
			}
		}
		r.ctl("rm", "-f", "server")
		r.eventually("no clients", func() bool { return len(r.driver("net0").Clients) == 0 })
		r.ctl("driver", "rm", "net0")
	})
}

// lie has a driver lie from now on.
func (r *rig) lie(driver, how string) {
	r.t.Helper()
	if _, err := r.client.CrashDriver(context.Background(), driver, how); err != nil {
		r.t.Fatal(err)
	}
}
