package e2e

import (
	"strings"
	"testing"

	"github.com/grailos/grail/hv"
)

// TestHostileGuests lets guests try what they must not, beside a neighbour that must not notice.
func TestHostileGuests(t *testing.T) {
	program := compileC(t, "hostile")
	onEngines(t, func(r *rig) {
		r.ctl("create", "--name", "neighbour", "--engine", string(r.engine), "--", r.dir+"/guest", "signal")
		r.ctl("start", "neighbour")
		r.eventually("the neighbour runs", func() bool { return strings.Contains(r.ctl("logs", "neighbour"), "waiting") })
		const segv = 128 + 11
		for _, c := range []struct {
			what string
			out  string // contained in the output
			code int    // -1: any
		}{
			{"cli", "SIGSEGV", segv},
			{"hlt", "SIGSEGV", segv},
			{"cr3", "SIGSEGV", segv},
			{"wrmsr", "SIGSEGV", segv},
			{"lgdt", "SIGSEGV", segv},
			{"out", "SIGSEGV", segv},
			{"unmapped", "SIGSEGV", segv},
			{"stub", "", -1}, // a system call with whatever is in the registers, or a fault
			{"stub-write", "SIGSEGV", segv},
			{"tables", "SIGSEGV", segv},
			{"stack", "SIGSEGV", segv},
			{"noncanonical", "SIGSEGV", segv},
			{"threads", " threads\n", 0},
			{"maps", " maps refused\n", 0},
			{"flood", "xxxx", 0},
		} {
			r.t.Run(c.what, func(t *testing.T) {
				out, code := r.run(nil, "run", "--rm", "--engine", string(r.engine), "--memory", "128M", "--env", "ENGINE="+string(r.engine),
					"--", program, c.what)
				if code != c.code && c.code >= 0 || !strings.Contains(out, c.out) {
					t.Errorf("exit code %d, want %d; output %.600q", code, c.code, out)
				}
			})
		}
		if r.engine == hv.EngineKVM {
			// What floods a log instead of a terminal is kept to a bound.
			r.ctl("create", "--name", "flood", "--engine", string(r.engine), "--", program, "flood")
			r.ctl("start", "flood")
			r.eventually("the flood ends", func() bool { return strings.Contains(r.ctl("ps", "-a"), "exited 0") })
			if n := len(r.ctl("logs", "flood")); n > 32<<20 {
				r.t.Errorf("%d bytes of log", n)
			}
			r.ctl("rm", "flood")
		}
		if out := r.ctl("inspect", "neighbour"); !strings.Contains(out, "state        running") {
			r.t.Errorf("the neighbour:\n%s", out)
		}
		r.ctl("stop", "neighbour")
		if out := r.ctl("logs", "neighbour"); !strings.Contains(out, "got terminated") {
			r.t.Errorf("the neighbour said %q", out)
		}
	})
}
