package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRun(t *testing.T) {
	onEngines(t, func(r *rig) {
		files := r.t.TempDir()
		if err := os.MkdirAll(filepath.Join(files, "etc"), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(files, "etc/motd"), []byte("hello from a file\n"), 0o644); err != nil {
			r.t.Fatal(err)
		}
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		for _, c := range []struct {
			name  string
			flags []string
			args  []string
			stdin []byte
			out   string // contained in the output
			code  int
		}{
			{"echo", nil, []string{"echo", "hello", "world"}, nil, "hello world\n", 0},
			{"exit code", nil, []string{"exit", "42"}, nil, "", 42},
			{"stderr", nil, []string{"stderr"}, nil, "to stderr\n", 0},
			{"environment", []string{"--env", "COLOUR=blue"}, []string{"env", "COLOUR"}, nil, "blue\n", 0},
			{"no host environment", nil, []string{"env", "GRAIL_STATE_DIR"}, nil, "\n", 0},
			{"files", []string{"--files", files}, []string{"file", "/etc/motd"}, nil, "hello from a file\n", 0},
			{"no host files", nil, []string{"file", "/etc/passwd"}, nil, "no such file", 1},
			{"stdin", nil, []string{"cat"}, big, string(big), 0},
			{"Go panic", nil, []string{"panic"}, nil, "nil pointer dereference", 2},
			{"out of memory", []string{"--memory", "64M"}, []string{"eat"}, nil, "used up its memory", 137},
			{"CPU cap", []string{"--cpu", "0.5"}, []string{"echo", "capped"}, nil, "capped", 0},
		} {
			r.t.Run(c.name, func(t *testing.T) {
				out, code := r.run(c.stdin, r.guest(c.flags, c.args...)...)
				if !strings.Contains(out, c.out) {
					t.Errorf("output %q, want %q", out[:min(len(out), 2000)], c.out[:min(len(c.out), 200)])
				}
				if code != c.code {
					t.Errorf("exit code %d, want %d; output %q", code, c.code, out[:min(len(out), 2000)])
				}
			})
		}
		if out := r.ctl("ps", "--all"); strings.Contains(out, "guest") {
			r.t.Errorf("--rm left something:\n%s", out)
		}
	})
}

func TestSignals(t *testing.T) {
	onEngines(t, func(r *rig) {
		for _, c := range []struct {
			what string
			send []unix.Signal
			out  string
			code int
		}{
			{"signal", []unix.Signal{unix.SIGTERM}, "got terminated", 0},
			{"signal", []unix.Signal{unix.SIGINT}, "got interrupt", 0},
			{"signal", []unix.Signal{unix.SIGUSR1}, "got user defined signal 1", 0},
			{"deaf", []unix.Signal{unix.SIGTERM, unix.SIGINT}, "", 137},
		} {
			cmd := r.command(r.guest(nil, c.what)...)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				r.t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				r.t.Fatal(err)
			}
			lines := bufio.NewScanner(stdout)
			if !lines.Scan() || lines.Text() != "waiting" {
				r.t.Fatalf("%s: first line %q", c.what, lines.Text())
			}
			for _, s := range c.send {
				if err := cmd.Process.Signal(s); err != nil {
					r.t.Fatal(err)
				}
			}
			// Whoever does not listen is asked again, as a person would, and the second SIGINT ends the VM. Two in
			// quick succession are one: signals do not queue.
			again := time.AfterFunc(300*time.Millisecond, func() { _ = cmd.Process.Signal(c.send[len(c.send)-1]) })
			limit := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
			var rest []string
			for lines.Scan() {
				rest = append(rest, lines.Text())
			}
			again.Stop()
			limit.Stop()
			got := code(r.t, cmd.Wait())
			if got != c.code || !strings.Contains(strings.Join(rest, "\n"), c.out) {
				r.t.Errorf("%s after %v: exit code %d, want %d; output %q", c.what, c.send, got, c.code, rest)
			}
		}
	})
}

func TestBackground(t *testing.T) {
	onEngines(t, func(r *rig) {
		guest := filepath.Join(r.dir, "guest")
		r.ctl("create", "--name", "talker", "--engine", string(r.engine), "--", guest, "signal")
		r.ctl("start", "talker")
		r.eventually("it talks", func() bool { return strings.Contains(r.ctl("logs", "talker"), "waiting") })
		if out := r.ctl("inspect", "talker"); !strings.Contains(out, "state        running") || !strings.Contains(out, "engine       "+string(r.engine)) {
			r.t.Errorf("inspect:\n%s", out)
		}
		r.killDaemon()
		r.ctl("stop", "talker")
		if out := r.ctl("logs", "talker"); !strings.Contains(out, "got terminated") {
			r.t.Errorf("log:\n%s", out)
		}
		if out := r.ctl("ps", "-a"); !strings.Contains(out, "exited 0") {
			r.t.Errorf("ps:\n%s", out)
		}
		r.ctl("rm", "talker")
	})
}

// The guest's standard files are the user's own: it goes on when graild dies, and so does grailctl.
func TestForegroundSurvivesDaemon(t *testing.T) {
	onEngines(t, func(r *rig) {
		cmd := r.command(r.guest([]string{"--name", "fg"}, "cat")...)
		stdin, lines := r.talk(cmd)
		for i := range 3 {
			fmt.Fprintf(stdin, "line %d\n", i)
			if !lines.Scan() || lines.Text() != fmt.Sprintf("line %d", i) {
				r.t.Fatalf("line %d: %q", i, lines.Text())
			}
			r.killDaemon()
			if i == 1 {
				r.ctl("daemon", "start")
			} else {
				// The waiting grailctl starts the next one itself.
				r.eventually("a new graild", func() bool { _, err := r.client.Version(t.Context()); return err == nil })
			}
		}
		stdin.Close()
		if got := code(r.t, cmd.Wait()); got != 0 {
			r.t.Errorf("exit code %d", got)
		}
	})
}
