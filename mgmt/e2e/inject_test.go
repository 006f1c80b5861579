package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// injected is one fault and what has to come of it.
type injected struct {
	kind  string
	set   []string
	cause []hv.Cause // the driver dies, of one of these; nil: it lives on
}

// dies are the ends of a program that does not survive a fault of its own.
var dies = []hv.Cause{hv.CauseSignal, hv.CauseExit, hv.CauseHang}

// faults of a block driver that its clients must not notice, each on both engines where it works.
var faults = []injected{
	{kind: "kill", cause: []hv.Cause{hv.CauseSignal}},
	{kind: "vmm:kill", cause: []hv.Cause{hv.CauseKilled}},
	{kind: "exception:de", cause: dies},
	{kind: "exception:db", cause: dies},
	{kind: "exception:bp", cause: dies},
	{kind: "exception:of", cause: dies},
	{kind: "exception:br", cause: dies},
	{kind: "exception:ud", cause: dies},
	{kind: "exception:nm", cause: dies},
	{kind: "exception:np", cause: dies},
	{kind: "exception:ss", cause: dies},
	{kind: "exception:gp", cause: dies},
	{kind: "exception:pf", cause: dies},
	{kind: "exception:mf", cause: dies},
	{kind: "exception:ac", cause: dies},
	{kind: "exception:xm", cause: dies},
	{kind: "flip:code"},
	{kind: "flip:data"},
	{kind: "flip:stack"},
	{kind: "flip:registers"},
	{kind: "syscall:fail"},
	{kind: "syscall:delay"},
	{kind: "io:error", set: []string{"transient=1", "n=5"}},
	{kind: "io:short", set: []string{"n=50"}},
	{kind: "io:slow", set: []string{"ms=150", "n=2"}},
	{kind: "bell:lost", set: []string{"n=3"}},
	{kind: "bell:double", set: []string{"n=50"}},
	{kind: "bell:storm", set: []string{"ms=300"}},
	{kind: "clock", set: []string{"by=-1h"}},
	{kind: "clock", set: []string{"by=24h"}},
	{kind: "hang:loop", cause: []hv.Cause{hv.CauseHang}},
	{kind: "hang:syscall", cause: []hv.Cause{hv.CauseHang}},
	{kind: "hang:deadlock", cause: []hv.Cause{hv.CauseHang}},
	{kind: "stall", cause: []hv.Cause{hv.CauseStall}},
	{kind: "memory", cause: append([]hv.Cause{hv.CauseMemory}, dies...)},
}

// inject makes a fault in driver blk0.
func (r *rig) inject(f injected, seed uint64) (done api.Injected) {
	r.t.Helper()
	args := []string{"inject", "blk0", f.kind, "--seed", fmt.Sprint(seed), "--json"}
	for _, s := range f.set {
		args = append(args, "--set", s)
	}
	if err := json.Unmarshal([]byte(r.ctl(args...)), &done); err != nil {
		r.t.Fatal(err)
	}
	r.t.Logf("%s %v: %s", f.kind, f.set, done.What)
	if done.Kind != f.kind || done.Seed != seed || done.What == "" || done.Target == "" {
		r.t.Errorf("answer %+v", done)
	}
	return done
}

// Every fault is made under a VM that writes and checks, which must not notice.
func TestInjectedFaults(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20))
		v := r.verify("blk0/d", 20*time.Second)
		r.eventually("the client", r.serving("blk0", 1))
		for i, f := range faults {
			k := api.LookupFault(f.kind)
			if k == nil {
				t.Fatalf("no fault %s", f.kind)
			}
			if len(k.Engines) > 0 && !slices.Contains(k.Engines, r.engine) {
				continue
			}
			seed := uint64(1000 + i)
			// A fault before may have killed it a little later.
			r.eventually("ready for "+f.kind, r.serving("blk0", 1))
			before := r.crashes("blk0")
			generation := r.driver("blk0").Generation
			r.inject(f, seed)
			if f.cause == nil {
				continue
			}
			r.eventually("recovered from "+f.kind, r.serving("blk0", generation+1))
			after := r.crashes("blk0")
			if len(after) != len(before)+1 {
				r.t.Fatalf("%s: %d crash records, then %d", f.kind, len(before), len(after))
			}
			c := after[len(after)-1]
			r.t.Logf("  %s: %s, recovered in %.1f ms", c.Cause, c.Message, c.RecoverMs)
			if !slices.Contains(f.cause, c.Cause) {
				r.t.Errorf("%s: cause %s, want one of %v", f.kind, c.Cause, f.cause)
			}
			if c.Injected != f.kind || c.InjectedSeed != seed {
				r.t.Errorf("%s: recorded as %q with seed %d", f.kind, c.Injected, c.InjectedSeed)
			}
		}
		r.ctl("stop", "v")
		v.wait()
		r.ctl("driver", "rm", "blk0")
	})
}
