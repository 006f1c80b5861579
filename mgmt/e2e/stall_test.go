package e2e

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// Networks and consoles keep no log of what they have taken; their drivers are found out as well, and those that work are not.
func TestOtherDriversStall(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "net", "net0", "--engine", string(r.engine), "--deadline", "300ms", "--port", "web", "--port", "user")
		r.startServer("server", "web")
		r.ctl(r.netcheck("user", "ping", "web")...)
		r.eventually("the console driver, which is made in the background", func() bool {
			d, err := r.client.Driver(t.Context(), "con0")
			return err == nil && d.State == api.Ready
		})
		r.ctl("driver", "set", "con0", "--deadline", "300ms")
		for _, name := range []string{"net0", "con0"} {
			r.ctl("driver", "crash", name, "--how", "stall")
		}
		r.run(nil, r.netcheck("user", "ping", "web")...) // which prints, too
		for _, name := range []string{"net0", "con0"} {
			r.eventually(name+" is replaced", func() bool {
				list := r.crashes(name)
				return len(list) == 1 && list[0].Cause == hv.CauseStall
			})
		}
		r.ctl(r.netcheck("user", "ping", "web")...)
		r.ctl("rm", "--force", "server")
	})
}

// A driver that beats and leaves the requests lying that it has taken is replaced, and its client loses nothing.
func TestDriverStalls(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20))
		v := r.verify("blk0/d", time.Second)
		r.eventually("the client", r.serving("blk0", 1))
		r.ctl("driver", "crash", "blk0", "--how", "stall")
		v.wait() // which takes a recovery
		list := r.crashes("blk0")
		if len(list) == 1 {
			shown := r.ctl("crash", "show", fmt.Sprint(list[0].ID))
			requests := list[0].Rings[0].Requests
			if len(requests) == 0 || requests[0].Bytes == 0 || requests[0].What != "read" && requests[0].What != "write" || !strings.Contains(shown, "in flight, oldest first") {
				r.t.Errorf("in flight: %+v\n%s", requests, shown)
			}
			r.t.Log(shown)
		}
		if len(list) != 1 || list[0].Cause != hv.CauseStall || list[0].Injected != "stall" {
			r.t.Errorf("%+v", list)
		}
		r.ctl("driver", "rm", "blk0")
	})
}

// A driver that stalls with a request of a client that ends then, and takes no further ones, is replaced for the others' sake, whose requests it has never
// taken.
func TestDriverTakesNothing(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--deadline", "3s", "--disk", "d="+r.disk(32<<20), "--disk", "e="+r.disk(8<<20))
		other := r.command("run", "--rm", "--name", "w", "--engine", string(r.engine), "--disk", "blk0/e", "--",
			filepath.Join(r.dir, "verify"), "-serve", "-disk", "e", "-mib", "2", "-workers", "1")
		in, lines := r.talk(other)
		busy := r.verify("blk0/d", time.Minute)
		r.eventually("both clients", func() bool {
			d := r.driver("blk0")
			return len(d.Clients) == 2 && d.Clients[0].Attached && d.Clients[1].Attached
		})
		r.ctl("driver", "crash", "blk0", "--how", "stall")
		r.ctl("rm", "--force", "v")
		_ = busy.cmd.Wait()
		if _, err := io.WriteString(in, "probe 1\n"); err != nil {
			r.t.Error(err)
		}
		answered := false
		for !answered && lines.Scan() {
			answered = strings.HasPrefix(lines.Text(), "probe 1 ")
		}
		in.Close()
		if err := other.Wait(); err != nil || !answered {
			r.t.Errorf("answered: %t, %v", answered, err)
		}
		list := r.crashes("blk0")
		if len(list) != 1 || list[0].Cause != hv.CauseStall {
			r.t.Errorf("%+v", list)
		}
	})
}
