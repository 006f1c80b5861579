package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/console"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// consoleProgram makes console drivers possible; "serve" is a good one.
func (r *rig) consoleProgram(text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(os.Getenv("GRAIL_LIBEXEC"), "drivers", "console"), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// served returns the names of the consoles that a driver serves now.
func (r *rig) served(driver string) map[string]uint64 {
	r.t.Helper()
	list := map[string]uint64{}
	d, err := r.client.Driver(ctx(r.t), driver)
	if err == nil {
		for _, b := range d.Clients {
			if b.Attached {
				list[b.Name] = b.ID
			}
		}
	}
	return list
}

func (r *rig) eventuallyServed(driver, name string) uint64 {
	r.t.Helper()
	var id uint64
	eventually(r.t, driver+" serves "+name, func() bool { id = r.served(driver)[name]; return id != 0 })
	return id
}

// A console is attached to a driver that graild makes, whatever happens to that and to graild; its log stays until it is removed.
func TestConsole(t *testing.T) {
	r := newRig(t)
	r.consoleProgram("serve")
	r.mustDriver("blk0")
	v := r.mustStart("web", "wait")
	id := r.eventuallyServed("con0", "web")
	r.eventuallyServed("con0", "blk0")
	l, err := r.client.Log(ctx(t), "web")
	if err != nil || !l.Live || l.Driver || l.Gone || len(l.Files) != 1 || len(l.Texts) != 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	if st, err := os.Stat(l.Files[0]); err != nil || st.Size() != console.DefaultLog || st.Mode().Perm() != 0o600 {
		t.Errorf("the log: %+v, %v", st, err)
	}
	if l, err := r.client.Log(ctx(t), "blk0"); err != nil || !l.Live || !l.Driver || len(l.Files) == 0 {
		t.Errorf("the driver's log: %+v, %v", l, err)
	}
	if l, err := r.client.Log(ctx(t), "con0"); err != nil || len(l.Files) != 0 {
		t.Errorf("the console driver's log: %+v, %v", l, err)
	}
	if _, err := r.client.CrashDriver(ctx(t), "con0", "kill"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next instance serves", func() bool {
		d, err := r.client.Driver(ctx(t), "con0")
		return err == nil && d.Generation == 2 && r.served("con0")["web"] == id
	})
	r.close()
	r.open()
	if got := r.eventuallyServed("con0", "web"); got != id {
		t.Errorf("after the change of graild it is attachment %d, not %d", got, id)
	}
	eventually(t, "the driver's is served, too", func() bool { return r.served("con0")["blk0"] != 0 })
	if err := r.client.RemoveDriver(ctx(t), "con0", false); api.KindOf(err) != api.Busy {
		t.Errorf("remove a console driver in use: %v", err)
	}
	_, err = r.client.CreateDriver(ctx(t), api.CreateDriver{Config: api.DriverConfig{Name: "con1", Type: "console", Engine: hv.EngineProcess, MemoryBytes: 64 << 20}})
	if api.KindOf(err) != api.Exists {
		t.Errorf("a second console driver: %v", err)
	}

	if err := r.client.SignalVM(ctx(t), "web", 15); err != nil {
		t.Fatal(err)
	}
	r.wait(v)
	eventually(t, "it is detached", func() bool { return r.served("con0")["web"] == 0 })
	if l, err = r.client.Log(ctx(t), "web"); err != nil || l.Live || l.Gone || len(l.Files) != 1 {
		t.Errorf("after its end: %+v, %v", l, err)
	}
	eventually(t, "nothing writes to its log", func() bool {
		list, err := r.client.Logs(ctx(t))
		return err == nil && len(list) == 2 && list[0].Name == "blk0" && list[0].Live && list[1].Name == "web" && !list[1].Live && !list[1].Gone
	})
	if err := r.client.RemoveVM(ctx(t), "web", false); err != nil {
		t.Fatal(err)
	}
	if l, err = r.client.Log(ctx(t), "web"); api.KindOf(err) != api.NotFound {
		t.Errorf("after its removal: %+v, %v", l, err)
	}
}

// Where no console driver can be, VMs run as they would, and write their logs to files.
func TestConsoleFiles(t *testing.T) {
	r := newRig(t)
	check := func(name string) {
		t.Helper()
		if rep := r.wait(r.mustStart(name, "say hello")); rep.Cause != hv.CauseExit {
			t.Errorf("%+v", rep)
		}
		l, err := r.client.Log(ctx(t), name)
		if err != nil || len(l.Files) != 0 || len(l.Texts) != 1 {
			t.Errorf("%+v, %v", l, err)
		}
	}
	check("no-program")
	r.consoleProgram("serve")
	t.Setenv("GRAIL_CONSOLE", "files")
	check("not-wanted")
	if list := r.d.Drivers(); len(list) != 0 {
		t.Errorf("drivers: %+v", list)
	}
}

// A console driver that ends whenever it starts is no VM's concern.
func TestConsoleBroken(t *testing.T) {
	r := newRig(t)
	r.consoleProgram("broken")
	for _, name := range []string{"a", "b"} {
		v := r.mustStart(name, "exit 3")
		if rep := r.wait(v); rep.Code != 3 {
			t.Errorf("%+v", rep)
		}
	}
	eventually(t, "it was tried", func() bool {
		r.d.mu.Lock()
		defer r.d.mu.Unlock()
		o := r.d.outputs[r.d.logPath("a", 0)]
		return o != nil && !r.d.makingConsole
	})
	if err := r.client.RemoveVM(ctx(t), "a", false); err != nil {
		t.Error(err)
	}
}

// A VM that is gone leaves its log, which its name removes.
func TestConsoleGone(t *testing.T) {
	r := newRig(t)
	r.consoleProgram("serve")
	v := r.mustStart("web", "exit 0")
	r.wait(v)
	eventually(t, "it is logged", func() bool { l, err := r.client.Log(ctx(t), "web"); return err == nil && len(l.Files) == 1 })
	vm, err := r.d.vm("web")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.d.drop(vm, -1); err != nil { // as at the end of one that was started with --rm
		t.Fatal(err)
	}
	if l, err := r.client.Log(ctx(t), "web"); err != nil || !l.Gone || l.Live || len(l.Files) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	eventually(t, "nothing writes to it", func() bool {
		l, err := r.client.Logs(ctx(t))
		return err == nil && len(l) == 1 && l[0].Gone && !l[0].Live
	})
	if err := r.client.RemoveVM(ctx(t), "web", false); err != nil {
		t.Error(err)
	}
	if err := r.client.RemoveVM(ctx(t), "web", false); api.KindOf(err) != api.NotFound {
		t.Errorf("removed twice: %v", err)
	}
	for _, name := range []string{"..", "../lock", "a/b", ""} {
		if _, err := r.d.Log(name); api.KindOf(err) != api.Invalid {
			t.Errorf("log of %q: %v", name, err)
		}
		if err := r.d.RemoveVM(context.Background(), name, false); api.KindOf(err) != api.NotFound {
			t.Errorf("remove %q: %v", name, err)
		}
	}
}

// A graild that ends leaves no console driver behind that nobody needs, also right after the last VM has ended.
func TestConsoleIdle(t *testing.T) {
	r := newRig(t)
	r.consoleProgram("serve")
	r.mustDriver("blk0")
	v := r.mustStart("web", "wait")
	r.eventuallyServed("con0", "web")
	r.eventuallyServed("con0", "blk0")
	r.close()
	r.open()
	if got := len(r.d.Drivers()); got != 2 {
		t.Fatalf("%d drivers while a VM runs", got)
	}
	if err := r.client.SignalVM(ctx(t), "web", 15); err != nil {
		t.Fatal(err)
	}
	r.wait(v)
	if err := r.client.RemoveDriver(ctx(t), "blk0", true); err != nil {
		t.Fatal(err)
	}
	r.close()
	r.open()
	if list := r.d.Drivers(); len(list) != 0 {
		t.Errorf("drivers: %+v", list)
	}
}

func TestCheckConsole(t *testing.T) {
	ok := func() api.DriverConfig {
		return api.DriverConfig{Name: "con0", Type: typeConsole, MemoryBytes: 64 << 20}
	}
	c := ok()
	if err := checkDriver(&c); err != nil || *c.Console != (api.ConsoleConfig{LogBytes: console.DefaultLog, Rate: console.DefaultRate,
		Keep: defaultKeep, KeepBytes: defaultKeepBytes}) || c.HeartbeatMs != consoleHeartbeatMs {
		t.Errorf("%+v, %v", c, err)
	}
	for what, change := range map[string]func(c *api.DriverConfig){
		"disks":         func(c *api.DriverConfig) { c.Disks = []api.Disk{{ID: "d", Path: "/d"}} },
		"ports":         func(c *api.DriverConfig) { c.Ports = []api.Port{{Name: "p"}} },
		"socket":        func(c *api.DriverConfig) { c.Socket = true },
		"little memory": func(c *api.DriverConfig) { c.MemoryBytes = 32 << 20 },
		"small log":     func(c *api.DriverConfig) { c.Console = &api.ConsoleConfig{LogBytes: 4096} },
		"odd log":       func(c *api.DriverConfig) { c.Console = &api.ConsoleConfig{LogBytes: 1<<20 + 1} },
		"large log":     func(c *api.DriverConfig) { c.Console = &api.ConsoleConfig{LogBytes: 1 << 40} },
		"slow":          func(c *api.DriverConfig) { c.Console = &api.ConsoleConfig{Rate: 1} },
		"fast":          func(c *api.DriverConfig) { c.Console = &api.ConsoleConfig{Rate: 1 << 40} },
		"many":          func(c *api.DriverConfig) { c.Console = &api.ConsoleConfig{Keep: 1 << 30} },
	} {
		c := ok()
		change(&c)
		if err := checkDriver(&c); api.KindOf(err) != api.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// The process of a VM has kept what it likes: the log is that of its VM.
func TestAdoptHostileOutput(t *testing.T) {
	d := &Daemon{outputs: map[string]*output{}}
	d.dirs.State = "/state"
	inst := &instance{name: "web", generation: 3}
	list := []*client{
		{att: hv.Attachment{Disk: consoleDevice, Client: "../../etc/passwd", Regions: make([]hv.AttachMem, 1), Queues: make([]hv.AttachRing, 1)}},
		{att: hv.Attachment{Disk: consoleDevice, Client: "other", Regions: make([]hv.AttachMem, 1), Queues: make([]hv.AttachRing, 1)}},
		{att: hv.Attachment{Disk: consoleDevice, Client: "web"}},
		{att: hv.Attachment{Disk: "data", Driver: "blk0", Client: "web"}},
	}
	if rest := d.adoptOutput(inst, roleVM, list); len(rest) != 3 || inst.output == nil || inst.output.path != "/state/logs/web.0" || inst.output.client.att.Client != "web" {
		t.Errorf("%d attachments are left, %+v", len(rest), inst.output)
	}
}

func TestOpenLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "web.0")
	const size = 1 << 20
	f, has, err := openLog(path, size)
	if err != nil || has != size {
		t.Fatal(has, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size != size || st.Blocks*512 < size {
		t.Errorf("%d bytes, %d blocks, %v", st.Size, st.Blocks, err)
	}
	// One that is there keeps its size, unless that makes no sense.
	for _, c := range []struct{ is, want int64 }{{size, size}, {64 << 10, 64 << 10}, {100, size}, {0, size}, {1 << 30, size}} {
		if err := f.Truncate(c.is); err != nil {
			t.Fatal(err)
		}
		g, has, err := openLog(path, size)
		if err != nil || has != uint64(c.want) {
			t.Errorf("%d bytes: %d, %v", c.is, has, err)
			continue
		}
		g.Close()
	}
	// Whatever the driver has written where it says how much is used.
	for head, least := range map[string]int64{"\x00\x10\x00\x00\x00\x00\x00\x00": 8192, "\xff\xff\xff\xff\xff\xff\xff\xff": size, "\x00\xf0\x0f\x00\x00\x00\x00\x00": size, "": 4096} {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(head + "\x00\x00\x00\x00\x00\x00\x00\x00")[:8], 16); err != nil {
			t.Fatal(err)
		}
		trimLog(f)
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size != size || st.Blocks*512 < least || st.Blocks*512 > least+64<<10 {
			t.Errorf("head %q: %d bytes, %d of them on the disk, %v", head, st.Size, st.Blocks*512, err)
		}
	}
	if _, _, err := openLog(filepath.Dir(path), size); err == nil {
		t.Error("a directory was opened")
	}
}

// Of the logs that have ended, the newest stay.
func TestSweepLogs(t *testing.T) {
	d := &Daemon{outputs: map[string]*output{}, log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
	d.dirs.State = t.TempDir()
	if err := os.MkdirAll(filepath.Join(d.dirs.Logs(), "folder.0"), 0o700); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for i, name := range strings.Fields("a b c d e f") {
		path := d.logPath(name, 0)
		if err := os.WriteFile(path, make([]byte, 10<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old.Add(time.Duration(i)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	d.outputs[d.logPath("a", 0)] = &output{} // the oldest is live
	left := func() string {
		var names []string
		for _, l := range d.Logs() {
			names = append(names, l.Name)
		}
		return strings.Join(names, " ")
	}
	for _, c := range []struct {
		keep  int
		bytes uint64
		just  string
		want  string
	}{
		{10, 1 << 30, "f", "a b c d e f"},
		{4, 1 << 30, "f", "a c d e f"},
		{10, 40 << 10, "f", "a d e f"},
		{1, 1 << 30, "d", "a d f"}, // the one that has just ended stays
		{10, 0, "f", "a f"},
	} {
		d.sweepLogs(&api.ConsoleConfig{Keep: c.keep, KeepBytes: c.bytes}, d.logPath(c.just, 0))
		if got := left(); got != c.want {
			t.Errorf("%+v: %q is left", c, got)
		}
	}
}
