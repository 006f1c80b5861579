package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/fakevm"
	"github.com/grailos/grail/mgmt/place"
)

// TestMain makes the test binary stand in for grailvm, and for a graild that dies.
func TestMain(m *testing.M) {
	if os.Args[0] == "grailvm" {
		fakevm.Main()
	}
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	os.Exit(m.Run())
}

// rig is a daemon over fake VMs, with its API.
type rig struct {
	t      *testing.T
	dirs   place.Dirs
	d      *Daemon
	client *api.Client
	server *http.Server
	log    io.Writer
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// newRig skips where VMs cannot be jailed.
func newRig(t *testing.T) *rig {
	t.Helper()
	probe := hv.NewLaunch("/bin/true", hv.Personality, "probe")
	if p, err := probe.Start(); errors.Is(err, hv.ErrNamespaces) {
		t.Skipf("needs namespaces: %v", err)
	} else if err == nil {
		_ = p.Wait(0)
	}
	libexec := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(libexec, "grailvm")); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t}
	t.Setenv("GRAIL_LIBEXEC", libexec)
	r.driverProgram("serve")
	state := t.TempDir()
	r.dirs = place.Dirs{State: state, Run: filepath.Join(state, "run")}
	r.open()
	t.Cleanup(func() {
		if r.d == nil {
			r.open()
		}
		for _, v := range r.d.VMs() {
			_ = r.d.RemoveVM(context.Background(), v.Name, true)
		}
		for _, v := range r.d.Drivers() {
			_ = r.d.RemoveDriver(v.Name, true)
		}
		r.close()
	})
	return r
}

func (r *rig) driverProgram(text string) {
	r.t.Helper()
	dir := filepath.Join(os.Getenv("GRAIL_LIBEXEC"), "drivers")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blk"), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) open() {
	r.t.Helper()
	d, err := Open(r.dirs, slog.New(slog.NewTextHandler(testLog{r.t}, nil)), "test")
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := d.Listen()
	if err != nil {
		r.t.Fatal(err)
	}
	r.d, r.client = d, api.NewClient(r.dirs.API())
	r.server = &http.Server{Handler: d.Handler(func() {})}
	go func(s *http.Server, l net.Listener) { _ = s.Serve(l) }(r.server, l)
}

func (r *rig) close() {
	r.t.Helper()
	r.server.Close()
	if err := r.d.Close(); err != nil {
		r.t.Error(err)
	}
	r.d = nil
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return c
}

// program returns a file that holds a fake program.
func (r *rig) program(text string) *os.File {
	r.t.Helper()
	f, err := hv.NewSealed("program", []byte(text))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { f.Close() })
	return f
}

// start makes and starts a VM.
func (r *rig) start(name, text string, files map[api.Role]*os.File, disks ...api.DiskRef) (api.VM, error) {
	r.t.Helper()
	if files == nil {
		files = map[api.Role]*os.File{}
	}
	files[api.RoleProgram] = r.program(text)
	ticket, release, err := api.HandOver(r.dirs.Handover(), files)
	if err != nil {
		r.t.Fatal(err)
	}
	defer release()
	return r.client.CreateVM(ctx(r.t), api.CreateVM{Start: &api.StartVM{Ticket: ticket, Wait: true}, Config: api.VMConfig{
		Name: name, Personality: "native", Engine: hv.EngineProcess, MemoryBytes: 64 << 20, Program: "/" + strings.Fields(text)[0], Disks: disks}})
}

func (r *rig) mustStart(name, text string, disks ...api.DiskRef) api.VM {
	r.t.Helper()
	v, err := r.start(name, text, nil, disks...)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

func (r *rig) wait(v api.VM) *hv.Report {
	r.t.Helper()
	v, err := r.client.WaitVM(ctx(r.t), v.Name, v.Generation)
	if err != nil {
		r.t.Fatal(err)
	}
	if v.State != api.Exited || v.Report == nil {
		r.t.Fatalf("after waiting: %+v", v)
	}
	return v.Report
}

// diskFile returns the path of a new file of 1 MiB.
func diskFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (r *rig) driver(name string, disks ...api.Disk) (api.Driver, error) {
	r.t.Helper()
	if len(disks) == 0 {
		disks = []api.Disk{{ID: "d", Path: diskFile(r.t)}}
	}
	return r.client.CreateDriver(ctx(r.t), api.CreateDriver{Config: api.DriverConfig{Name: name, Type: "blk",
		Engine: hv.EngineProcess, MemoryBytes: 64 << 20, Disks: disks}})
}

func (r *rig) mustDriver(name string, disks ...api.Disk) api.Driver {
	r.t.Helper()
	d, err := r.driver(name, disks...)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
