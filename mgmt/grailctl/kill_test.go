package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
)

// TestKillDaemonAtRandom kills graild again and again while VMs are started, run and ended and a driver is crashed. No
// command may fail, no VM may end that was not told to, and nothing may be left over.
func TestKillDaemonAtRandom(t *testing.T) {
	if checkNamespaces().Level != "ok" {
		t.Skip("the host refuses namespaces")
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("GRAIL_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("GRAIL_SEED=%d", seed)
	kills := 12
	if n, err := strconv.Atoi(os.Getenv("GRAIL_KILLS")); err == nil {
		kills = n
	}
	dir, hello := libexec(t)
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "grailctl"), ".")
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	state := t.TempDir()
	t.Setenv("GRAIL_LIBEXEC", dir)
	t.Setenv("GRAIL_STATE_DIR", state)
	t.Setenv("GRAIL_RUN_DIR", "")
	dirs := place.Dirs{State: state, Run: filepath.Join(state, "run")}
	t.Cleanup(func() {
		cleanUp(t, state)
		if t.Failed() {
			b, _ := os.ReadFile(dirs.Log())
			t.Logf("graild's log:\n%s", b)
		}
	})
	// ctl runs grailctl and returns its exit code.
	ctl := func(args ...string) (int, string) {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		b, err := exec.CommandContext(ctx, filepath.Join(dir, "grailctl"), args...).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return -1, err.Error()
		}
		if exit != nil {
			return exit.ExitCode(), string(b)
		}
		return 0, string(b)
	}
	must := func(args ...string) string {
		t.Helper()
		code, out := ctl(args...)
		if code != 0 {
			t.Fatalf("%v: exit code %d: %s", args, code, out)
		}
		return out
	}
	disk := filepath.Join(state, "disk.img")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	must("driver", "create", "blk", "blk0", "--engine", "process", "--disk", "d="+disk)
	must("create", "--name", "w", "--engine", "process", "--disk", "blk0/d", hello, "io", "100000000")
	must("start", "w")
	client := api.NewClient(dirs.API())
	ctx := context.Background()
	before, err := client.VM(ctx, "w")
	if err != nil {
		t.Fatal(err)
	}

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 2 {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				code := r.IntN(100)
				args := []string{"run", "--rm", "--engine", "process", "--name", fmt.Sprintf("r%d-%d", i, n)}
				if r.IntN(2) == 0 {
					args = append(args, "--disk", "blk0/d", hello, "io", "5")
					code = 0
				} else {
					args = append(args, hello, "exit", strconv.Itoa(code))
				}
				if got, out := ctl(args...); got != code {
					t.Errorf("%v: exit code %d: %s", args, got, out)
					return
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(seed, 99))
	for range kills {
		time.Sleep(time.Duration(r.IntN(150)) * time.Millisecond)
		if r.IntN(2) == 0 {
			_, _ = client.CrashDriver(ctx, "blk0", []string{"kill", "fault", "hang"}[r.IntN(3)])
			time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
		}
		if v, err := client.Version(ctx); err == nil {
			_ = unix.Kill(v.PID, unix.SIGKILL)
		}
	}
	close(stop)
	wg.Wait()

	if out := must("ps"); !strings.Contains(out, "w ") {
		t.Errorf("w is gone:\n%s", out)
	}
	if after, err := client.VM(ctx, "w"); err != nil || after.PID != before.PID || after.State != api.Running {
		t.Errorf("w: %+v, %v", after, err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		d, err := client.Driver(ctx, "blk0")
		if err == nil && d.State == api.Ready && len(d.Clients) == 1 && d.Clients[0].Attached && d.Status != nil && len(d.Status.Attached) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the driver: %+v, %v", d, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	// The driver's processes and the VM's: nothing else is left.
	left := func() (n int) {
		out, _ := exec.Command("pgrep", "-f", "^grailvm .* grail:").Output()
		for _, pid := range strings.Fields(string(out)) {
			if exe, _ := os.Readlink("/proc/" + pid + "/exe"); strings.HasPrefix(exe, dir) {
				n++
			}
		}
		return n
	}
	if n := left(); n < 2 || n > 3 {
		t.Errorf("%d grailvm processes, want the VM's, the driver's, and its spare's at most", n)
	}
	must("stop", "-t", "0", "w")
	must("driver", "rm", "blk0")
	if n := left(); n != 0 {
		t.Errorf("%d grailvm processes after everything was removed", n)
	}
}
