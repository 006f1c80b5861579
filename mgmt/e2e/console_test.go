package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grailos/grail/mgmt/api"
)

// background starts the test guest in a VM of its own.
func (r *rig) background(name string, args ...string) {
	r.t.Helper()
	line := []string{"create", "--name", name, "--engine", string(r.engine), "--memory", "64M", "--", filepath.Join(r.dir, "guest")}
	r.ctl(append(line, args...)...)
	r.ctl("start", name)
}

// ended waits for the end of a VM, which must be a good one.
func (r *rig) ended(name string) {
	r.t.Helper()
	var v api.VM
	r.eventually(name+" ends", func() bool {
		v = api.VM{}
		if err := json.Unmarshal([]byte(r.ctl("inspect", name, "--json")), &v); err != nil {
			r.t.Fatal(err)
		}
		return v.State == api.Exited
	})
	if v.Report == nil || v.Report.Cause != "exit" || v.Report.Code != 0 {
		r.t.Errorf("%s ended with %+v", name, v.Report)
	}
}

// counted checks that a log has each of so many lines once, and nothing else.
func (r *rig) counted(log string, n int) {
	r.t.Helper()
	lines := strings.Split(strings.TrimSuffix(log, "\n"), "\n")
	for i := range min(n, len(lines)) {
		if want := fmt.Sprintf("line %d", i); lines[i] != want {
			r.t.Fatalf("line %d of the log is %q", i, lines[i])
		}
	}
	if len(lines) != n {
		r.t.Errorf("%d lines of %d", len(lines), n)
	}
}

// A VM prints while its console driver is killed, faults and hangs, and while graild is killed. It does not notice, and its log has every line once.
func TestConsoleDriverCrashes(t *testing.T) {
	onEngines(t, func(r *rig) {
		const lines = 400
		r.background("talker", "count", fmt.Sprint(lines), "5000")
		r.eventually("it is heard", func() bool { return strings.Contains(r.ctl("logs", "talker"), "line 3\n") })
		for _, how := range []string{"kill", "fault", "hang"} {
			before := r.driver("con0").Generation
			r.ctl("driver", "crash", "con0", "--how", how)
			// A busy host may make it crash once more.
			r.eventually("con0 is there again", func() bool { d := r.driver("con0"); return d.State == api.Ready && d.Generation > before })
		}
		r.killDaemon()
		r.ctl("daemon", "start")
		r.ended("talker")
		r.counted(r.ctl("logs", "talker"), lines)
		if n := len(r.crashes("con0")); n < 3 {
			r.t.Errorf("%d crash records", n)
		}

		// The log stays when the VM has ended, and for a VM that starts again with the earlier run's behind --all.
		r.ctl("start", "talker")
		r.eventually("the next run is heard", func() bool { return strings.Contains(r.ctl("logs", "talker"), "line 3\n") })
		if out := r.ctl("logs", "--all", "talker"); strings.Count(out, "line 3\n") != 2 || strings.Count(out, "[grail: a new run]\n") != 2 {
			r.t.Errorf("both runs:\n%.1000s", out)
		}
		r.ctl("stop", "-t", "0", "talker")
		r.ctl("rm", "talker")
		if out, code := r.run(nil, "logs", "talker"); code == 0 {
			r.t.Errorf("the log of a VM that was removed:\n%s", out)
		}
		if out := r.ctl("logs", "--list"); strings.Contains(out, "talker") {
			r.t.Errorf("logs:\n%s", out)
		}
	})
}

// A VM that floods its console is limited, which its log says. Others are not.
func TestConsoleFlood(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.background("quiet", "count", "200", "2000")
		r.background("flood", "flood", "8")
		r.ended("flood")
		r.ended("quiet")
		out := r.ctl("logs", "flood")
		if !strings.Contains(out, "[grail: ") || len(out) > 6<<20 || len(out) < 512<<10 {
			r.t.Errorf("%d bytes of log, the end is %q", len(out), out[max(0, len(out)-200):])
		}
		if strings.Contains(r.ctl("logs", "--tail", "1", "quiet"), "grail") {
			r.t.Error("the other one was limited")
		}
		r.counted(r.ctl("logs", "quiet"), 200)

		r.background("garbage", "garbage")
		r.ended("garbage")
		out = r.ctl("logs", "garbage")
		if !strings.HasPrefix(out, "\x00\x01\x02") || !strings.HasSuffix(out, "long \nend without a line feed") || strings.Count(out, "long ") != 10_000 {
			r.t.Errorf("%d bytes, from %q to %q", len(out), out[:min(50, len(out))], out[max(0, len(out)-50):])
		}
		if out := r.ctl("logs", "--timestamps", "--tail", "1", "garbage"); !strings.HasSuffix(out, " end without a line feed") {
			r.t.Errorf("the last line: %q", out)
		} else if at, err := time.Parse(time.RFC3339, strings.Fields(out)[0]); err != nil || time.Since(at) > 10*time.Minute || time.Since(at) < 0 {
			r.t.Errorf("it was written at %v, %v", at, err)
		}
		if out := r.ctl("logs", "--since", "0s", "garbage"); out != "" {
			r.t.Errorf("since now: %q", out)
		}
	})
}

// Without its driver a VM starts and runs, and what it printed is logged when there is one; the consoles of drivers are logged as well.
func TestConsoleDriverMissing(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(1<<20))
		r.background("early", "signal")
		r.eventually("it is heard", func() bool { return strings.Contains(r.ctl("logs", "early"), "waiting") })
		if out, code := r.run(nil, "driver", "rm", "con0"); code == 0 {
			r.t.Errorf("a console driver in use was removed:\n%s", out)
		}
		r.ctl("driver", "rm", "--force", "con0")
		r.ctl("stop", "early")
		// The next VM has one made, which takes what the first one said while there was none.
		r.background("late", "echo", "hello")
		r.ended("late")
		r.eventually("both are logged", func() bool {
			return strings.Contains(r.ctl("logs", "late"), "hello\n") && strings.Contains(r.ctl("logs", "early"), "waiting\ngot terminated\n")
		})
		r.ctl("driver", "crash", "blk0", "--how", "fault")
		r.eventually("the driver's last words are logged", func() bool { return strings.Contains(r.ctl("logs", "blk0"), "told to misbehave: fault") })
		if out := r.ctl("logs", "-n", "5", "con0"); strings.Contains(out, "panic") {
			r.t.Errorf("con0 said\n%s", out)
		}
		list, err := os.ReadDir(r.dirs.Logs())
		if err != nil || len(list) < 3 {
			r.t.Errorf("%d logs, %v", len(list), err)
		}
	})
}
