package daemon

import (
	"bytes"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/state"
	"github.com/grailos/grail/mgmt/api"
)

// TestStateGoesOn kills a driver, then graild, then both: each time the next instance is given what the one before has kept.
func TestStateGoesOn(t *testing.T) {
	r := newRig(t)
	r.mustDriver("blk0")
	r.wait(r.mustStart("a", "io 5", api.DiskRef{Driver: "blk0", Disk: "d"}))
	before, err := r.client.DriverState(ctx(t), "blk0")
	if err != nil || before.Records == 0 || before.Sequence == 0 || before.Size != 64<<10 {
		t.Fatalf("%+v, %v", before, err)
	}
	crashed := func(n int) api.Crash {
		t.Helper()
		var list []api.Crash
		eventually(t, "the crash is recorded in full", func() bool {
			list, err = r.client.Crashes(ctx(t), "blk0")
			return err == nil && len(list) == n && !list[n-1].Attached.IsZero()
		})
		return list[n-1]
	}
	if _, err := r.client.CrashDriver(ctx(t), "blk0", "kill"); err != nil {
		t.Fatal(err)
	}
	if c := crashed(1); c.State == nil || c.State.Sequence != before.Sequence || c.State.Records != before.Records {
		t.Errorf("after a crash: %+v, want %+v", c.State, before)
	}
	r.wait(r.mustStart("b", "io 5", api.DiskRef{Driver: "blk0", Disk: "d"}))
	again, err := r.client.DriverState(ctx(t), "blk0")
	if err != nil || again.Sequence <= before.Sequence || again.Generation <= before.Generation {
		t.Errorf("%+v after %+v, %v", again, before, err)
	}
	r.close()
	r.open()
	adopted, err := r.client.DriverState(ctx(t), "blk0")
	if err != nil || adopted.Sequence != again.Sequence {
		t.Errorf("the next graild sees %+v, want %+v, %v", adopted, again, err)
	}
	pid := r.d.Drivers()[0].PID
	r.close()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.open()
	if c := crashed(2); c.State == nil || c.State.Sequence != again.Sequence {
		t.Errorf("after both ended: %+v, want %+v", c.State, again)
	}
	// A restart on request passes it on as well.
	if _, err := r.client.RestartDriver(ctx(t), "blk0"); err != nil {
		t.Fatal(err)
	}
	if d, err := r.client.Driver(ctx(t), "blk0"); err != nil || d.Kept == nil || d.Kept.Sequence < again.Sequence {
		t.Errorf("after a restart: %+v, %v", d.Kept, err)
	}
}

// TestPoisonedState has a driver die whenever it finds a state: after a few attempts an instance is given none.
func TestPoisonedState(t *testing.T) {
	r := newRig(t)
	r.driverProgram("superstitious")
	r.mustDriver("blk0")
	r.mustStart("a", "wait", api.DiskRef{Driver: "blk0", Disk: "d"})
	r.wait(r.mustStart("b", "io 5", api.DiskRef{Driver: "blk0", Disk: "d"}))
	if _, err := r.client.CrashDriver(ctx(t), "blk0", "kill"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an instance lives", func() bool {
		d, err := r.client.Driver(ctx(t), "blk0")
		return err == nil && d.State == api.Ready && d.Crashes >= 1+mistrust && d.Clients[0].Attached
	})
	crashes, err := r.client.Crashes(ctx(t), "blk0")
	if err != nil || len(crashes) != 1+mistrust || crashes[0].State == nil || crashes[mistrust].State != nil {
		t.Errorf("%d crashes, %v", len(crashes), err)
	}
}

// TestStateCopy checks when the monitor believes a region, and what it gives the next instance.
func TestStateCopy(t *testing.T) {
	r := newRig(t)
	r.mustDriver("blk0")
	dr, err := r.d.driver("blk0")
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 10
	region := func() (*driverInstance, []byte) {
		f, err := hv.NewMemory("state", size)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		mem, err := unix.Mmap(rawFD(f), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Munmap(mem) })
		return &driverInstance{state: f}, mem
	}
	first, mem := region()
	l, _, err := state.Open(mem, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Start(func(put state.Put) { put(1, []byte("checkpoint")) })
	l.Append(2, []byte("record"))
	l.Words()[5] = 99
	dr.lookAtState(first)
	good := state.Inspect(mem)
	l.Append(3, []byte("another"))
	for i := range mem[size/4:] {
		mem[size/4+i] ^= 0x55 // a driver gone mad
	}
	dr.lookAtState(first)
	if dr.kept.info != good {
		t.Fatalf("%+v, want %+v", dr.kept.info, good)
	}
	second, mem2 := region()
	if v := dr.giveState(second); v == nil || v.Records != 1 || v.Items != 1 || state.Inspect(mem2) != good {
		t.Fatalf("%+v was given: %+v", v, state.Inspect(mem2))
	}
	var got [][]byte
	l2, taken, err := state.Open(mem2, 1, func(_ uint16, b []byte) { got = append(got, bytes.Clone(b)) })
	if err != nil || taken != (state.Taken{Items: 1, Records: 1}) || string(bytes.Join(got, nil)) != "checkpointrecord" || l2.Words()[5] != 99 {
		t.Errorf("%+v, %q, word %d, %v", taken, got, l2.Words()[5], err)
	}
	// What was never given to an instance that died early is not lost by it.
	third, _ := region()
	dr.lookAtState(third)
	if dr.kept.info != good {
		t.Errorf("an empty region took the place of the copy: %+v", dr.kept.info)
	}
	// A damaged file is none.
	dr.saveState()
	if err := os.WriteFile(dr.statePath(), []byte("no state"), 0o600); err != nil {
		t.Fatal(err)
	}
	dr.kept.copy, dr.kept.loaded = nil, false
	if v := dr.giveState(third); v != nil {
		t.Errorf("%+v from a damaged file", v)
	}
	dr.stateDied(time.Hour, false)
}
