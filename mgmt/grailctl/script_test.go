package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"grailctl": func() { os.Exit(Main()) }})
}

// libexec builds Grail's programs, with a fake grailvm, and returns their folder and a static program for guests.
func libexec(t *testing.T) (dir, hello string) {
	t.Helper()
	dir = t.TempDir()
	build := func(out, pkg string) {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, out), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("cannot build %s: %v\n%s", pkg, err, b)
		}
	}
	build("graild", "github.com/grailos/grail/mgmt/graild")
	build("grailvm", "./testdata/fakevm")
	build("grailport", "github.com/grailos/grail/hv/grailport")
	build("hello", "./testdata/hello")
	if err := os.MkdirAll(filepath.Join(dir, "drivers"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "drivers/blk"), []byte("serve"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, filepath.Join(dir, "hello")
}

// TestScripts runs testdata/script/*.txtar, each with a graild of its own.
func TestScripts(t *testing.T) {
	dir, hello := libexec(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			state := filepath.Join(env.WorkDir, "state")
			env.Setenv("GRAIL_LIBEXEC", dir)
			env.Setenv("GRAIL_STATE_DIR", state)
			env.Setenv("HELLO", hello)
			env.Defer(func() { cleanUp(t, state) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"killd":   killDaemon,
			"disk":    makeDisk,
			"waitfor": waitFor,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "namespaces" {
				return checkNamespaces().Level == "ok", nil
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
	})
}

// cleanUp ends whatever a script left running.
func cleanUp(t *testing.T, state string) {
	dirs := place.Dirs{State: state, Run: filepath.Join(state, "run")}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c := api.NewClient(dirs.API())
	vms, err := c.VMs(ctx)
	if err != nil {
		return
	}
	for _, v := range vms {
		if err := c.RemoveVM(ctx, v.Name, true); err != nil {
			t.Error(err)
		}
	}
	drivers, _ := c.Drivers(ctx)
	for _, d := range drivers {
		if err := c.RemoveDriver(ctx, d.Name, true); err != nil {
			t.Error(err)
		}
	}
	if err := c.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// exits CODE COMMAND... runs a command and checks its exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if e, ok := err.(*exec.ExitError); ok {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// killDaemon ends graild with SIGKILL.
func killDaemon(ts *testscript.TestScript, neg bool, args []string) {
	state := ts.Getenv("GRAIL_STATE_DIR")
	c := api.NewClient(filepath.Join(state, "run/graild.sock"))
	v, err := c.Version(context.Background())
	ts.Check(err)
	ts.Check(unix.Kill(v.PID, unix.SIGKILL))
	for !api.Down(err) {
		_, err = c.Version(context.Background())
	}
}

// makeDisk NAME SIZE makes a file of SIZE bytes.
func makeDisk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: disk NAME SIZE")
	}
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), nil, 0o600))
	ts.Check(os.Truncate(ts.MkAbs(args[0]), n))
}

// waitFor TEXT COMMAND... runs a command until it prints TEXT.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: waitfor TEXT COMMAND [ARG...]")
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := ts.Exec(args[1], args[2:]...)
		if out := ts.ReadFile("stdout"); err == nil && strings.Contains(out, args[0]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v never printed %q", args[1:], args[0])
		}
		time.Sleep(10 * time.Millisecond)
	}
}
