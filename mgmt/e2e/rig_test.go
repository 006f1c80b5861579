package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/engine"
	"github.com/grailos/grail/mgmt/place"
)

// programs are built once for all tests.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "grail-e2e-")
	if err != nil {
		return "", err
	}
	for out, pkg := range map[string]string{
		"grailctl": "mgmt/grailctl", "graild": "mgmt/graild", "grailvm": "hv/grailvm", "grailport": "hv/grailport", "grailnat": "drivervms/net/grailnat",
		"graillinux": "personalities/linux/graillinux", "guests/amd64/grail-init": "personalities/linux/agent/init",
		"guests/arm64/grail-init": "personalities/linux/agent/init",
		"drivers/blk":             "drivervms/blk/guest",
		"drivers/console":         "drivervms/console/guest",
		"drivers/net":             "drivervms/net/guest", "verify": "personalities/native/examples/verify", "guest": "mgmt/e2e/testdata/guest",
		"netcheck": "personalities/native/examples/netcheck", "load": "personalities/native/examples/load",
		"cache": "personalities/native/examples/cache",
	} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, out), "github.com/grailos/grail/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if strings.HasPrefix(out, "guests/arm64/") {
			cmd.Env = append(cmd.Env, "GOARCH=arm64")
		}
		if b, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build %s: %w\n%s", pkg, err, b)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := programs(); dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// rig is one Grail with a state of its own.
type rig struct {
	t      *testing.T
	dir    string // programs
	dirs   place.Dirs
	engine hv.Engine
	client *api.Client
	unit   time.Duration // how long a small VM takes from start to end here and now: busy hosts are slow
}

// onEngines runs a test on every engine of the host.
func onEngines(t *testing.T, test func(r *rig)) {
	for _, e := range []hv.Engine{hv.EngineKVM, hv.EngineProcess} {
		t.Run(string(e), func(t *testing.T) {
			if e == hv.EngineKVM {
				f, err := engine.KVM()
				if err != nil {
					t.Skip("SKIPPED, NO ENGINE:", err)
				}
				f.Close()
			}
			test(newRig(t, e))
		})
	}
}

func newRig(t *testing.T, e hv.Engine) *rig {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	r := &rig{t: t, dir: dir, engine: e, dirs: place.Dirs{State: state, Run: filepath.Join(state, "run")}}
	r.client = api.NewClient(r.dirs.API())
	if out, code := r.run(nil, "doctor"); code != 0 {
		t.Skipf("SKIPPED: VMs cannot run here:\n%s", out)
	}
	t.Cleanup(r.cleanUp)
	began := time.Now()
	r.ctl(r.guest(nil, "echo")...)
	r.unit = time.Since(began)
	return r
}

func (r *rig) cleanUp() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r.ctl("daemon", "start")
	r.standsAside()
	vms, _ := r.client.VMs(ctx)
	for _, v := range vms {
		if err := r.client.RemoveVM(ctx, v.Name, true); err != nil {
			r.t.Error(err)
		}
	}
	drivers, _ := r.client.Drivers(ctx)
	for _, d := range drivers {
		if err := r.client.RemoveDriver(ctx, d.Name, true); err != nil {
			r.t.Error(err)
		}
	}
	r.ctl("daemon", "stop")
	if r.t.Failed() {
		b, _ := os.ReadFile(r.dirs.Log())
		r.t.Logf("graild's log:\n%s", b)
	}
}

// command prepares grailctl.
func (r *rig) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(r.dir, "grailctl"), args...)
	cmd.Env = append(os.Environ(), "GRAIL_STATE_DIR="+r.dirs.State, "GRAIL_RUN_DIR="+r.dirs.Run, "GRAIL_LIBEXEC="+r.dir)
	return cmd
}

// talk starts a command, and returns the ends of its standard input and output.
func (r *rig) talk(cmd *exec.Cmd) (in io.WriteCloser, out *bufio.Scanner) {
	r.t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return in, bufio.NewScanner(stdout)
}

// run runs grailctl and returns both its outputs and its exit code.
func (r *rig) run(stdin []byte, args ...string) (string, int) {
	r.t.Helper()
	return r.runWithin(time.Minute, stdin, args...)
}

func (r *rig) runWithin(limit time.Duration, stdin []byte, args ...string) (string, int) {
	r.t.Helper()
	cmd := r.command(args...)
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	n := code(r.t, runFor(cmd, limit))
	return out.String(), n
}

// runFor runs cmd for at most a time.
func runFor(cmd *exec.Cmd, limit time.Duration) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	defer timer.Stop()
	return cmd.Wait()
}

func code(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		return exit.ExitCode()
	}
	return 0
}

// ctl runs grailctl, which must succeed.
func (r *rig) ctl(args ...string) string {
	r.t.Helper()
	return r.ctlWithin(time.Minute, args...)
}

func (r *rig) ctlWithin(limit time.Duration, args ...string) string {
	r.t.Helper()
	cmd := r.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := runFor(cmd, limit); err != nil {
		r.t.Fatalf("grailctl %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// guest returns the arguments of grailctl run for the test guest.
func (r *rig) guest(flags []string, args ...string) []string {
	line := append([]string{"run", "--rm", "--engine", string(r.engine)}, flags...)
	return append(append(line, "--", filepath.Join(r.dir, "guest")), args...)
}

// disk makes a file of size bytes.
func (r *rig) disk(size int64) string {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *rig) driver(name string) api.Driver {
	r.t.Helper()
	var list []api.Driver
	if err := json.Unmarshal([]byte(r.ctl("driver", "ls", "--json")), &list); err != nil {
		r.t.Fatal(err)
	}
	for _, d := range list {
		if d.Name == name {
			return d
		}
	}
	r.t.Fatalf("no driver %s", name)
	return api.Driver{}
}

func (r *rig) crashes(name string) []api.Crash {
	r.t.Helper()
	var list []api.Crash
	if err := json.Unmarshal([]byte(r.ctl("driver", "crashes", name, "--json")), &list); err != nil {
		r.t.Fatal(err)
	}
	return list
}

// killDaemon ends graild with SIGKILL.
func (r *rig) killDaemon() {
	r.t.Helper()
	v, err := r.client.Version(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	r.standsAside()
	if err := unix.Kill(v.PID, unix.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	r.eventually("graild is gone", func() bool {
		_, err := r.client.Version(context.Background())
		return api.Down(err)
	})
}

// standsAside checks that graild, which keeps the doorbells of all rings, is not woken by any: its poller has one eventfd, the Go runtime's own.
func (r *rig) standsAside() {
	r.t.Helper()
	v, err := r.client.Version(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	proc := fmt.Sprintf("/proc/%d/", v.PID)
	link := func(fd string) string {
		s, _ := os.Readlink(proc + "fd/" + fd)
		return s
	}
	infos, err := os.ReadDir(proc + "fdinfo")
	if err != nil {
		r.t.Fatal(err)
	}
	bells := 0
	for _, info := range infos {
		if link(info.Name()) != "anon_inode:[eventpoll]" {
			continue
		}
		b, _ := os.ReadFile(proc + "fdinfo/" + info.Name())
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "tfd:" && link(f[1]) == "anon_inode:[eventfd]" {
				bells++
			}
		}
	}
	if bells != 1 {
		r.t.Errorf("graild waits for %d eventfds, expected the Go runtime's one", bells)
	}
}

// eventually waits until ok holds.
func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(20*time.Second + 50*r.unit)
	for !ok() {
		if time.Now().After(deadline) {
			r.t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
