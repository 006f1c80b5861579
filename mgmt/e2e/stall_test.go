package e2e

import (
	"testing"
	"time"

	"github.com/grailos/grail/hv"
)

// A driver that beats and leaves the requests lying that it has taken is replaced, and its client loses nothing.
func TestDriverStalls(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20))
		v := r.verify("blk0/d", time.Second)
		r.eventually("the client", r.serving("blk0", 1))
		r.ctl("driver", "crash", "blk0", "--how", "stall")
		v.wait() // which takes a recovery
		list := r.crashes("blk0")
		if len(list) != 1 || list[0].Cause != hv.CauseStall || list[0].Injected != "stall" {
			r.t.Errorf("%+v", list)
		}
		r.ctl("driver", "rm", "blk0")
	})
}
