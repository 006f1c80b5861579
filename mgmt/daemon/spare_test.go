package daemon

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

func TestSpare(t *testing.T) {
	r := newRig(t)
	r.mustDriver("blk0")
	r.mustStart("c", "io 1000000", api.DiskRef{Driver: "blk0", Disk: "d"})
	spare := func(generation int) func() bool {
		return func() bool {
			d, _ := r.client.Driver(ctx(t), "blk0")
			return d.Spare && d.State == api.Ready && d.Generation == generation
		}
	}
	eventually(t, "a spare", spare(1))
	if _, err := r.client.CrashDriver(ctx(t), "blk0", "kill"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the spare took over, and there is another", spare(2))
	list, _ := r.client.Crashes(ctx(t), "blk0")
	if len(list) != 1 || !list[0].Spare || list[0].First.IsZero() {
		t.Errorf("%+v", list)
	}
	// The next graild ends the spare, goes on with the one that serves, and makes a new spare.
	d, _ := r.client.Driver(ctx(t), "blk0")
	r.close()
	r.open()
	eventually(t, "a spare after adoption", spare(2))
	if now, _ := r.client.Driver(ctx(t), "blk0"); now.PID != d.PID || now.Crashes != 1 || len(now.Clients) != 1 {
		t.Errorf("%+v", now)
	}
	// With only the spare left, that is the driver.
	r.close()
	if err := unix.Kill(d.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.open()
	eventually(t, "the spare alone took over", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		return d.State == api.Ready && d.Generation == 3 && len(d.Clients) == 1 && d.Clients[0].Attached
	})
	eventually(t, "and another", spare(3))
	if list, _ = r.client.Crashes(ctx(t), "blk0"); len(list) != 2 || list[1].Cause != hv.CauseKilled || list[1].Generation != 2 || d.Crashes != 2 {
		t.Errorf("%+v", list)
	}
	// A driver whose spare has just died does without one.
	killSpare(t, r)
	if _, err := r.client.CrashDriver(ctx(t), "blk0", "fault"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "without a spare", spare(4))
	// A restart uses no spare: it may come from an older program.
	if d, err := r.client.RestartDriver(ctx(t), "blk0"); err != nil || d.Generation != 5 {
		t.Errorf("%+v, %v", d, err)
	}
}

// A spare that dies is recorded as such and replaced, after a pause.
func TestSpareDies(t *testing.T) {
	r := newRig(t)
	r.mustDriver("blk0")
	up := func(n int) func() bool {
		return func() bool {
			d, _ := r.client.Driver(ctx(t), "blk0")
			return d.SparesUp == n
		}
	}
	eventually(t, "a spare", up(1))
	began := time.Now()
	killSpare(t, r)
	eventually(t, "its death is recorded", func() bool {
		list, _ := r.client.Crashes(ctx(t), "blk0")
		return len(list) == 1 && list[0].OfSpare && list[0].Cause == hv.CauseKilled
	})
	d, _ := r.client.Driver(ctx(t), "blk0")
	if d.SpareCrashes != 1 || d.Crashes != 0 || d.Generation != 1 || d.State != api.Ready {
		t.Errorf("%+v", d)
	}
	eventually(t, "another one", up(1))
	if took := time.Since(began); took < sparePause {
		t.Errorf("replaced after %v, which a spare that cannot live would do in a loop", took)
	}
	d, _ = r.client.Driver(ctx(t), "blk0")
	if n := spareNotes(d); len(n) != 0 {
		t.Errorf("notes %q", n)
	}
}

// spareNotes returns the notes that tell of a missing spare; there may be others.
func spareNotes(d api.Driver) []string {
	return slices.DeleteFunc(slices.Clone(d.Notes), func(n string) bool { return !strings.HasPrefix(n, "no spare: ") })
}

// What is set is used at once, and by the next graild.
func TestSetDriver(t *testing.T) {
	r := newRig(t)
	d := r.mustDriver("blk0")
	if *d.Spares != 1 || d.HeartbeatMs != 50 || d.DeadlineMs != 2000 || d.Policy != api.PolicyStall {
		t.Errorf("defaults: %+v", d.DriverConfig)
	}
	up := func(n int) {
		t.Helper()
		eventually(t, fmt.Sprint(n, " spares"), func() bool {
			d, _ = r.client.Driver(ctx(t), "blk0")
			return d.SparesUp == n
		})
	}
	up(1)
	if _, err := r.client.SetDriver(ctx(t), "blk0", api.SetDriver{Spares: new(3), HeartbeatMs: new(70), DeadlineMs: new(900), Policy: new(api.PolicyFail)}); err != nil {
		t.Fatal(err)
	}
	up(3)
	r.close()
	r.open()
	up(3)
	if d.HeartbeatMs != 70 || d.DeadlineMs != 900 || d.Policy != api.PolicyFail || d.FailAfterMs != 30000 {
		t.Errorf("after adoption: %+v", d.DriverConfig)
	}
	// Dead spares do not keep living ones from taking over.
	killSpare(t, r)
	if _, err := r.client.CrashDriver(ctx(t), "blk0", "kill"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a spare took over", func() bool {
		list, _ := r.client.Crashes(ctx(t), "blk0")
		d, _ = r.client.Driver(ctx(t), "blk0")
		return len(list) == 2 && d.State == api.Ready && d.Generation == 2 && (list[0].Spare || list[1].Spare)
	})
	if d, _ = r.client.SetDriver(ctx(t), "blk0", api.SetDriver{Spares: new(0), Policy: new(api.PolicyStall)}); d.FailAfterMs != 0 {
		t.Errorf("%+v", d.DriverConfig)
	}
	up(0)
	for name, s := range map[string]api.SetDriver{
		"spares": {Spares: new(5)}, "negative": {Spares: new(-1)}, "heartbeat": {HeartbeatMs: new(1)}, "deadline": {DeadlineMs: new(1)},
		"policy": {Policy: new(api.Policy("hope"))}, "a time without fail": {FailAfterMs: new(1000)}, "soon": {Policy: new(api.PolicyFail), FailAfterMs: new(1)},
	} {
		if _, err := r.client.SetDriver(ctx(t), "blk0", s); api.KindOf(err) != api.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A host without memory for a spare says so and serves without; when there is memory again, there is a spare.
func TestNoMemoryForSpare(t *testing.T) {
	r := newRig(t)
	var left atomic.Uint64
	r.d.memoryLeft = func() (uint64, bool) { return left.Load(), true }
	r.mustDriver("blk0")
	var d api.Driver
	eventually(t, "it says that it has no spare", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		return len(spareNotes(d)) == 1
	})
	if !strings.Contains(spareNotes(d)[0], "64M of memory, and the host has 0") || d.State != api.Ready || d.SparesUp != 0 {
		t.Errorf("%+v", d)
	}
	if _, err := r.client.CrashDriver(ctx(t), "blk0", "kill"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "replaced without", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		return d.Generation == 2 && d.State == api.Ready
	})
	left.Store(1 << 30)
	eventually(t, "a spare", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		return d.SparesUp == 1 && len(spareNotes(d)) == 0
	})
}

// What an earlier graild wrote is understood.
func TestOldPolicy(t *testing.T) {
	for old, want := range map[string]int{`{"heartbeatMs": 50}`: 1, `{"heartbeatMs": 50, "noSpare": true}`: 0} {
		var c api.DriverConfig
		if err := json.Unmarshal([]byte(old), &c); err != nil {
			t.Fatal(err)
		}
		defaultPolicy(&c)
		if err := checkPolicy(&c); err != nil || *c.Spares != want || c.NoSpare || c.Policy != api.PolicyStall {
			t.Errorf("%s: %+v, %v", old, c, err)
		}
	}
}

func killSpare(t *testing.T, r *rig) {
	t.Helper()
	dr, err := r.d.driver("blk0")
	if err != nil {
		t.Fatal(err)
	}
	dr.mu.Lock()
	s := dr.spares[0]
	dr.mu.Unlock()
	if err := s.proc.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.ended
}
