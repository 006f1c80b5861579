package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
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
	{kind: "ring:driver", cause: []hv.Cause{hv.CauseProtocol}},
	{kind: "ring:driver", set: []string{"lie=log-index"}, cause: []hv.Cause{hv.CauseProtocol}},
	{kind: "bell:lost", set: []string{"n=3"}},
	{kind: "bell:double", set: []string{"n=50"}},
	{kind: "bell:storm", set: []string{"ms=300"}},
	{kind: "clock", set: []string{"by=-1h"}},
	{kind: "clock", set: []string{"by=24h"}},
	{kind: "hang:loop", cause: []hv.Cause{hv.CauseHang}},
	{kind: "hang:syscall", cause: []hv.Cause{hv.CauseHang}},
	{kind: "hang:deadlock", cause: []hv.Cause{hv.CauseHang}},
	{kind: "stall", cause: []hv.Cause{hv.CauseStall}},
	{kind: "memory", cause: []hv.Cause{hv.CauseMemory, hv.CauseHang}}, // the latter where its last word takes too long
}

// inject makes a fault in driver blk0.
func (r *rig) inject(f injected, seed uint64) (done api.Injected) {
	r.t.Helper()
	req := api.Inject{Kind: f.kind, Seed: seed, Set: map[string]string{}}
	for _, s := range f.set {
		k, v, _ := strings.Cut(s, "=")
		req.Set[k] = v
	}
	r.eventually("injected "+f.kind, func() bool {
		var err error
		done, err = r.client.InjectDriver(context.Background(), "blk0", req)
		if err != nil && api.KindOf(err) != api.Busy { // one before may kill it in just that moment
			r.t.Fatalf("%s: %v", f.kind, err)
		}
		return err == nil
	})
	r.t.Logf("%s %v: %s", f.kind, f.set, done.What)
	if done.Kind != f.kind || done.Seed != seed || done.What == "" || done.Target == "" {
		r.t.Errorf("answer %+v", done)
	}
	return done
}

// blk0 returns driver blk0 and its crashes.
func (r *rig) blk0() (api.Driver, []api.Crash) {
	r.t.Helper()
	d, err := r.client.Driver(context.Background(), "blk0")
	if err != nil {
		r.t.Fatal(err)
	}
	list, err := r.client.Crashes(context.Background(), "blk0")
	if err != nil {
		r.t.Fatal(err)
	}
	return d, list
}

// serves reports whether generation n or a later one of driver blk0 serves its one client.
func (r *rig) serves(n int) func() bool {
	return func() bool {
		d, _ := r.blk0()
		return d.State == api.Ready && d.Generation >= n && len(d.Clients) == 1 && d.Clients[0].Attached
	}
}

// Every fault is made under a VM that writes and checks, which must not notice.
func TestInjectedFaults(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20))
		v := r.verify("blk0/d", 5*time.Minute)
		r.eventually("the client", r.serving("blk0", 1))
		hangs, traced := 0, 0
		for i, f := range faults {
			k := api.LookupFault(f.kind)
			if k == nil {
				t.Fatalf("no fault %s", f.kind)
			}
			if len(k.Engines) > 0 && !slices.Contains(k.Engines, r.engine) {
				continue
			}
			seed := uint64(1000 + i)
			// A fault before may have killed it a little later, or be about to.
			r.eventually("ready for "+f.kind, r.serves(1))
			if i > 0 && f.cause != nil && faults[i-1].cause == nil {
				r.ctl("driver", "restart", "blk0")
			}
			d, before := r.blk0()
			r.inject(f, seed)
			if f.cause == nil {
				continue
			}
			r.eventually("recovered from "+f.kind, r.serves(d.Generation+1))
			_, after := r.blk0()
			if len(after) != len(before)+1 {
				r.t.Fatalf("%s: %d crash records, then %d", f.kind, len(before), len(after))
			}
			c := after[len(after)-1]
			r.t.Logf("  %s: %s, recovered in %.1f ms", c.Cause, c.Message, c.RecoverMs)
			if !slices.Contains(f.cause, c.Cause) {
				r.t.Errorf("%s: cause %s, want one of %v", f.kind, c.Cause, f.cause)
			}
			if c.Cause == hv.CauseHang {
				hangs++
				if c.Trace != nil && len(c.Trace.Stack) > 0 && c.Report.Fault.Signal == 0 {
					traced++
				}
			}
			if c.Injected != f.kind || c.InjectedSeed != seed {
				r.t.Errorf("%s: recorded as %q with seed %d", f.kind, c.Injected, c.InjectedSeed)
			}
		}
		// A process that is too slow over its last word is killed without one.
		if r.t.Logf("%d of %d hangs have a stack", traced, hangs); r.engine == hv.EngineProcess && traced == 0 {
			r.t.Error("no crash record of a hang has a stack")
		}
		var done api.Injected
		if err := json.Unmarshal([]byte(r.ctl("inject", "blk0", "bell:storm", "--seed", "7", "--set", "ms=1", "--json")), &done); err != nil || done.Seed != 7 {
			r.t.Errorf("%+v, %v", done, err)
		}
		r.ctl("stop", "v")
		v.wait()
		r.ctl("driver", "rm", "blk0")
	})
}

// check runs a VM that writes and checks a disk, and returns what came of it.
func (r *rig) check(name, disk string, ops int) (string, int) {
	r.t.Helper()
	return r.run(nil, "run", "--rm", "--name", name, "--engine", string(r.engine), "--disk", disk, "--", filepath.Join(r.dir, "verify"),
		"-disk", filepath.Base(disk), "-mib", "8", "-ops", fmt.Sprint(ops))
}

// Errors of the device reach the client as errors, and the driver goes on. A client that breaks its ring harms no other; and a native VM can be
// harmed as well.
func TestInjectedHarm(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20), "--disk", "e="+r.disk(32<<20))
		for _, f := range []injected{
			{kind: "io:error", set: []string{"op=write", "n=4"}},
			{kind: "io:error", set: []string{"op=flush", "n=4"}},
			{kind: "io:enospc", set: []string{"n=4"}},
		} {
			r.inject(f, 1)
			if out, code := r.check("w", "blk0/d", 200); code == 0 || strings.Contains(out, " is lost") || strings.Contains(out, " is changed") {
				r.t.Errorf("%s %v: the client noticed nothing, or more than an error:\n%s", f.kind, f.set, out)
			}
		}
		if out, code := r.check("w", "blk0/d", 100); code != 0 {
			r.t.Errorf("after the errors: exit code %d: %s", code, out)
		}
		if n := len(r.crashes("blk0")); n != 0 {
			r.t.Errorf("%d crashes", n)
		}

		v := r.verify("blk0/d", time.Minute)
		r.eventually("the client", r.serving("blk0", 1))
		w := r.command("run", "--rm", "--name", "w", "--engine", string(r.engine), "--disk", "blk0/e", "--", filepath.Join(r.dir, "verify"), "-disk", "e", "-mib", "8", "-time", "1m")
		if err := w.Start(); err != nil {
			r.t.Fatal(err)
		}
		r.eventually("both clients", func() bool { return len(r.driver("blk0").Clients) == 2 })
		for i, lie := range []string{"index", "wild"} {
			r.inject(injected{kind: "ring:client", set: []string{"client=w", "lie=" + lie}}, uint64(i))
		}
		if out, code := r.run(nil, "inject", "blk0", "ring:client", "--set", "client=nobody"); code == 0 || !strings.Contains(out, "has no client") {
			r.t.Errorf("a client that is not there: exit code %d: %s", code, out)
		}
		if out, code := r.run(nil, "inject", "nobody", "kill"); code == 0 || !strings.Contains(out, "nobody") {
			r.t.Errorf("a driver that is not there: exit code %d: %s", code, out)
		}
		r.eventually("its program", func() bool { st := r.vm("w").Status; return st != nil && st.Stats.Threads > 0 })
		r.ctl("inject", "w", "exception:ud")
		if got := code(r.t, w.Wait()); got == 0 {
			r.t.Error("a VM survived an exception")
		}
		// Until it works, its program may not have said yet that it wants to end by itself.
		r.eventually("the other client at work", func() bool { return r.operations("blk0", "v") > 0 })
		r.ctl("stop", "v")
		v.wait()
		r.ctl("driver", "rm", "blk0")
	})
}
