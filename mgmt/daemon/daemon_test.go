package daemon

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/store"
)

func TestRun(t *testing.T) {
	r := newRig(t)
	if rep := r.wait(r.mustStart("a", "exit 42")); rep.Cause != hv.CauseExit || rep.Code != 42 {
		t.Errorf("%+v", rep)
	}
	if rep := r.wait(r.mustStart("m", "memory")); rep.Cause != hv.CauseMemory {
		t.Errorf("%+v", rep)
	}
	// Standard files are the caller's own.
	inR, inW, _ := os.Pipe()
	outR, outW, _ := os.Pipe()
	defer outR.Close()
	v, err := r.start("cat", "cat", map[api.Role]*os.File{api.RoleStdin: inR, api.RoleStdout: outW})
	if err != nil {
		t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	fmt.Fprint(inW, "hello")
	inW.Close()
	if b, err := io.ReadAll(outR); string(b) != "hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if rep := r.wait(v); rep.Code != 0 {
		t.Errorf("%+v", rep)
	}
	// Again under the same name: only after rm.
	if _, err := r.start("a", "exit 0", nil); api.KindOf(err) != api.Exists {
		t.Errorf("name taken: %v", err)
	}
	if err := r.client.RemoveVM(ctx(t), "a", false); err != nil {
		t.Error(err)
	}
	if _, err := r.client.VM(ctx(t), "a"); api.KindOf(err) != api.NotFound {
		t.Errorf("removed: %v", err)
	}
	if _, err := os.Stat(r.dirs.VM("a")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files of a removed VM: %v", err)
	}
}

func TestStopAndSignal(t *testing.T) {
	r := newRig(t)
	v := r.mustStart("w", "wait")
	if err := r.client.RemoveVM(ctx(t), "w", false); api.KindOf(err) != api.Busy {
		t.Errorf("rm of a running VM: %v", err)
	}
	if err := r.client.SignalVM(ctx(t), "w", int(unix.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	if rep := r.wait(v); rep.Signal != int(unix.SIGUSR1) {
		t.Errorf("%+v", rep)
	}
	for _, c := range []struct {
		text  string
		grace int
		want  hv.Cause
	}{{"wait", 10000, hv.CauseSignal}, {"ignore", 50, hv.CauseStop}, {"ignore", 0, hv.CauseStop}} {
		r.mustStart("x", c.text)
		got, err := r.client.StopVM(ctx(t), "x", api.StopVM{GraceMs: c.grace})
		if err != nil || got.Report.Cause != c.want {
			t.Errorf("stop %+v: %+v, %v", c, got.Report, err)
		}
		if err := r.client.RemoveVM(ctx(t), "x", false); err != nil {
			t.Error(err)
		}
	}
	// A VMM killed from outside leaves no report; one is made up.
	v = r.mustStart("k", "ignore")
	if err := unix.Kill(v.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if rep := r.wait(v); rep.Cause != hv.CauseKilled {
		t.Errorf("%+v", rep)
	}
	if _, err := r.client.StopVM(ctx(t), "k", api.StopVM{}); api.KindOf(err) != api.Busy {
		t.Errorf("stop of an ended VM: %v", err)
	}
	if _, err := r.client.VM(ctx(t), "nobody"); api.KindOf(err) != api.NotFound {
		t.Errorf("%v", err)
	}
}

func TestDriverServes(t *testing.T) {
	r := newRig(t)
	d := r.mustDriver("blk0")
	if d.State != api.Ready || d.Generation != 1 {
		t.Fatalf("%+v", d)
	}
	if rep := r.wait(r.mustStart("c", "io 5", api.DiskRef{Driver: "blk0", Disk: "d"})); rep.Cause != hv.CauseExit || rep.Code != 0 {
		t.Errorf("%+v", rep)
	}
	if d, _ := r.client.Driver(ctx(t), "blk0"); len(d.Clients) != 0 || len(d.Status.Attached) != 0 {
		t.Errorf("after the client's end: %+v, %+v", d.Clients, d.Status)
	}
	v := r.mustStart("w", "wait", api.DiskRef{Driver: "blk0", Disk: "d", ReadOnly: true})
	d, _ = r.client.Driver(ctx(t), "blk0")
	if len(d.Clients) != 1 || !d.Clients[0].Attached || !d.Clients[0].ReadOnly || d.Clients[0].Name != "w" {
		t.Errorf("%+v", d.Clients)
	}
	if err := r.client.RemoveDriver(ctx(t), "blk0", false); api.KindOf(err) != api.Busy || !strings.Contains(err.Error(), "w") {
		t.Errorf("rm of a driver with clients: %v", err)
	}
	if err := r.client.RemoveDriver(ctx(t), "blk0", true); err != nil {
		t.Error(err)
	}
	if _, err := r.client.StopVM(ctx(t), "w", api.StopVM{}); err != nil {
		t.Error(err)
	}
	r.wait(v)
}

func TestDriverRecovers(t *testing.T) {
	r := newRig(t)
	r.mustDriver("blk0")
	v := r.mustStart("c", "io 1000000", api.DiskRef{Driver: "blk0", Disk: "d"})
	want := map[string]hv.Cause{"kill": hv.CauseKilled, "fault": hv.CauseSignal, "hang": hv.CauseHang}
	n := 0
	for _, how := range []string{"kill", "fault", "hang", "hang", "kill"} {
		if _, err := r.client.CrashDriver(ctx(t), "blk0", how); err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		n++
		var list []api.Crash
		eventually(t, "recovered from "+how, func() bool {
			list, _ = r.client.Crashes(ctx(t), "blk0")
			d, _ := r.client.Driver(ctx(t), "blk0")
			return len(list) == n && list[n-1].RecoverMs > 0 && d.State == api.Ready && d.Generation == n+1
		})
		c := list[n-1]
		if c.Cause != want[how] || c.Injected != how || c.Clients != 1 || c.First.IsZero() || c.Attached.IsZero() {
			t.Errorf("%s: %+v", how, c)
		}
		if how == "fault" && (c.Trace == nil || !strings.Contains(c.Trace.Instruction, "MOVB") || c.Report.Console[0] != "last words") {
			t.Errorf("trace: %+v", c.Trace)
		}
		t.Logf("%s: recovered in %.1f ms", how, c.RecoverMs)
	}
	if _, err := r.client.CrashDriver(ctx(t), "blk0", "confuse"); api.KindOf(err) != api.Invalid {
		t.Errorf("crash in an unknown way: %v", err)
	}
	d, err := r.client.RestartDriver(ctx(t), "blk0")
	if err != nil || d.Generation != n+2 || d.Crashes != n {
		t.Errorf("restart: %+v, %v", d, err)
	}
	if now, _ := r.client.VM(ctx(t), "c"); now.State != api.Running || now.Generation != v.Generation {
		t.Errorf("the client: %+v", now)
	}
}

func TestQuietClientIsNoHang(t *testing.T) {
	r := newRig(t)
	r.mustDriver("blk0")
	// It never rings; graild does, before it judges.
	if rep := r.wait(r.mustStart("c", "shy 3", api.DiskRef{Driver: "blk0", Disk: "d"})); rep.Code != 0 || rep.Cause != hv.CauseExit {
		t.Errorf("%+v", rep)
	}
	// Its ring is broken and stays so; that is not the driver's fault.
	r.mustStart("liar", "lie", api.DiskRef{Driver: "blk0", Disk: "d"})
	eventually(t, "the liar is found out", func() bool {
		d, _ := r.client.Driver(ctx(t), "blk0")
		return len(d.Clients) == 1 && d.Clients[0].Error != ""
	})
	if d, _ := r.client.Driver(ctx(t), "blk0"); d.Generation != 1 || d.Crashes != 0 {
		t.Errorf("the driver was replaced: %+v", d)
	}
}

// A driver that hangs while nothing waits in any ring is found out as well; one that has nothing to do is not taken for one.
func TestIdleDriverHangs(t *testing.T) {
	r := newRig(t)
	r.mustDriver("blk0")
	r.mustStart("c", "wait", api.DiskRef{Driver: "blk0", Disk: "d"})
	for n := range 2 {
		d, _ := r.client.Driver(ctx(t), "blk0")
		eventually(t, "it is rung, and beats", func() bool {
			now, _ := r.client.Driver(ctx(t), "blk0")
			if now.Generation != n+1 || now.Crashes != n {
				t.Fatalf("the driver was replaced: %+v", now)
			}
			return now.Status != nil && d.Status != nil && now.Status.Beat > d.Status.Beat
		})
		if _, err := r.client.CrashDriver(ctx(t), "blk0", "hang"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the hang is found out", func() bool {
			d, _ := r.client.Driver(ctx(t), "blk0")
			return d.State == api.Ready && d.Generation == n+2 && d.Crashes == n+1
		})
	}
}

func TestDriverThatNeverStarts(t *testing.T) {
	r := newRig(t)
	r.driverProgram("broken")
	if d, err := r.driver("blk0"); api.KindOf(err) != api.CannotRun || !strings.Contains(err.Error(), "code 9") {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := r.client.Driver(ctx(t), "blk0"); api.KindOf(err) != api.NotFound {
		t.Errorf("kept: %v", err)
	}
	// One that breaks later backs off, and a restart hurries it.
	r.driverProgram("serve")
	d := r.mustDriver("blk0")
	r.driverProgram("broken")
	if err := unix.Kill(d.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "back-off", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		return d.State == api.BackOff && strings.Contains(d.Message, "code 9")
	})
	if _, err := r.client.ResumeDriver(ctx(t), "blk0"); err == nil || !strings.Contains(err.Error(), "fails again") {
		t.Errorf("resumed while it is broken: %v", err)
	}
	// One that never gets better is left alone, and new clients are told.
	dr, err := r.d.driver("blk0")
	if err != nil {
		t.Fatal(err)
	}
	dr.mu.Lock()
	for !dr.backoff.Looping() {
		dr.backoff.Died(0, false)
	}
	dr.mu.Unlock()
	eventually(t, "crash loop", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		return d.State == api.CrashLoop && strings.Contains(d.Message, "driver resume blk0")
	})
	r.driverProgram("serve")
	if d, err := r.client.ResumeDriver(ctx(t), "blk0"); err != nil || d.State != api.Ready {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := r.client.ResumeDriver(ctx(t), "blk0"); api.KindOf(err) != api.Busy {
		t.Errorf("resumed while it serves: %v", err)
	}
}

func TestBackingFiles(t *testing.T) {
	r := newRig(t)
	path := diskFile(t)
	odd := filepath.Join(t.TempDir(), "odd")
	if err := os.WriteFile(odd, make([]byte, 513), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	locked := diskFile(t)
	f, err := os.Open(locked)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	r.mustDriver("holder", api.Disk{ID: "d", Path: path})
	for _, c := range []struct {
		name  string
		disks []api.Disk
		want  string
	}{
		{"used by another driver", []api.Disk{{ID: "d", Path: path}}, "driver holder"},
		{"used by another driver, by another name", []api.Disk{{ID: "d", Path: link}}, "driver holder"},
		{"used by another driver, read-only", []api.Disk{{ID: "d", Path: path, ReadOnly: true}}, "driver holder"},
		{"locked elsewhere", []api.Disk{{ID: "d", Path: locked}}, fmt.Sprintf("PID %d", os.Getpid())},
		{"twice", []api.Disk{{ID: "a", Path: diskFile(t)}, {ID: "a", Path: diskFile(t)}}, "twice"},
		{"same file twice", []api.Disk{{ID: "a", Path: odd[:len(odd)-3] + "none"}}, "does not exist"},
		{"directory", []api.Disk{{ID: "a", Path: t.TempDir()}}, "directory"},
		{"odd size", []api.Disk{{ID: "a", Path: odd}}, "multiple of 512"},
		{"empty", []api.Disk{{ID: "a", Path: empty}}, "is empty"},
		{"device", []api.Disk{{ID: "a", Path: "/dev/null"}}, "neither a regular file nor a block device"},
		{"relative", []api.Disk{{ID: "a", Path: "disk"}}, "absolute"},
		{"bad ID", []api.Disk{{ID: "a/b", Path: path}}, "not valid"},
	} {
		_, err := r.driver("other", c.disks...)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
	// Readers share.
	shared := diskFile(t)
	r.mustDriver("r1", api.Disk{ID: "d", Path: shared, ReadOnly: true})
	r.mustDriver("r2", api.Disk{ID: "d", Path: shared, ReadOnly: true})
	if _, err := r.driver("w", api.Disk{ID: "d", Path: shared}); api.KindOf(err) != api.Busy {
		t.Errorf("a writer beside readers: %v", err)
	}
	if _, err := r.start("v", "exit 0", nil, api.DiskRef{Driver: "r1", Disk: "d"}); err == nil || !strings.Contains(err.Error(), ":ro") {
		t.Errorf("read-only disk, to be written: %v", err)
	}
	if _, err := r.start("v", "exit 0", nil, api.DiskRef{Driver: "r1", Disk: "nope"}); api.KindOf(err) != api.NotFound {
		t.Errorf("no such disk: %v", err)
	}
	if _, err := r.start("v", "exit 0", nil, api.DiskRef{Driver: "nope", Disk: "d"}); api.KindOf(err) != api.NotFound {
		t.Errorf("no such driver: %v", err)
	}
	if _, err := r.start("r1", "exit 0", nil); api.KindOf(err) != api.Exists {
		t.Errorf("a driver's name for a VM: %v", err)
	}
	// The file is free again after rm.
	if err := r.client.RemoveDriver(ctx(t), "holder", false); err != nil {
		t.Fatal(err)
	}
	r.mustDriver("next", api.Disk{ID: "d", Path: path})
}

func TestAdopt(t *testing.T) {
	r := newRig(t)
	path := diskFile(t)
	r.mustDriver("blk0", api.Disk{ID: "d", Path: path})
	r.mustDriver("blk1")
	busy := r.mustStart("busy", "io 1000000", api.DiskRef{Driver: "blk0", Disk: "d"})
	ends := r.mustStart("ends", "wait")
	stays := r.mustStart("stays", "wait")
	d0, _ := r.client.Driver(ctx(t), "blk0")
	r.close()

	// Meanwhile one VM ends, and nobody watches.
	if err := unix.Kill(ends.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.open()
	if rep := r.wait(ends); rep.Cause != hv.CauseKilled {
		t.Errorf("%+v", rep)
	}
	for _, want := range []api.VM{busy, stays} {
		if v, err := r.client.VM(ctx(t), want.Name); err != nil || v.State != api.Running || v.PID != want.PID || v.Status == nil {
			t.Errorf("%s: %+v, %v", want.Name, v, err)
		}
	}
	d, err := r.client.Driver(ctx(t), "blk0")
	if err != nil || d.PID != d0.PID || d.Generation != 1 || len(d.Clients) != 1 {
		t.Fatalf("%+v, %v", d, err)
	}
	eventually(t, "ready and attached", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		return d.State == api.Ready && d.Clients[0].Attached
	})
	// The lock on the backing file was not lost, and hangs are noticed as before.
	if _, err := r.driver("thief", api.Disk{ID: "d", Path: path}); api.KindOf(err) != api.Busy {
		t.Errorf("the file of an adopted driver: %v", err)
	}
	if _, err := r.client.CrashDriver(ctx(t), "blk0", "hang"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "recovered", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		return d.State == api.Ready && d.Generation == 2
	})
	var list []api.Crash
	eventually(t, "recorded", func() bool { // once the first request is served again, or given up on
		list, _ = r.client.Crashes(ctx(t), "blk0")
		return len(list) > 0
	})
	if len(list) != 1 || list[0].Cause != hv.CauseHang {
		t.Errorf("%+v", list)
	}

	// A driver that dies while no graild runs is replaced by the next one, and its client goes on.
	r.close()
	if err := unix.Kill(d.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.open()
	eventually(t, "replaced", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		list, _ = r.client.Crashes(ctx(t), "blk0")
		return d.State == api.Ready && d.Generation == 3 && d.Clients[0].Attached && len(list) == 2 && list[1].RecoverMs > 0
	})
	if list[1].Cause != hv.CauseKilled || list[1].First.IsZero() {
		t.Errorf("%+v", list[1])
	}
	// A client that ends while no graild runs is detached by the next one.
	r.close()
	if err := unix.Kill(busy.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.open()
	eventually(t, "detached", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		return d.State == api.Ready && len(d.Clients) == 0 && d.Status != nil && len(d.Status.Attached) == 0
	})
	if _, err := Open(r.dirs, slog.New(slog.DiscardHandler), ""); !errors.Is(err, ErrRunning) {
		t.Errorf("two daemons: %v", err)
	}
}

// A process whose start was not recorded is found by its tag; one that no record knows of is ended.
func TestAdoptUnrecorded(t *testing.T) {
	r := newRig(t)
	v := r.mustStart("v", "wait")
	lost := r.mustStart("lost", "wait")
	d := r.mustDriver("blk0")
	r.close()
	// As if graild had been killed between the start and the record.
	s := openStore(t, r.dirs)
	vms, err := s.VMs()
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range vms {
		if rec.Config.Name == "v" {
			rec.State, rec.Process.PID = api.Starting, 0
			if err := s.PutVM(rec); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.DeleteVM("lost"); err != nil {
		t.Fatal(err)
	}
	drivers, err := s.Drivers()
	if err != nil {
		t.Fatal(err)
	}
	drivers[0].Generation, drivers[0].Launch, drivers[0].Process = 0, 0, store.Process{}
	if err := s.PutDriver(drivers[0]); err != nil {
		t.Fatal(err)
	}
	s.Close()
	r.open()
	if got, err := r.client.VM(ctx(t), "v"); err != nil || got.State != api.Running || got.PID != v.PID {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := r.client.Driver(ctx(t), "blk0"); err != nil || got.PID != d.PID || got.Generation != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	eventually(t, "the lost one ends", func() bool { return unix.Kill(lost.PID, 0) != nil })
}
