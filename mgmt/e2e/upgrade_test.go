package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grailos/grail/mgmt/api"
)

// buildProgram builds a driver's program with linker flags of its own, so that it differs from the installed one.
func buildProgram(t *testing.T, pkg, ldflags string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", ldflags, "-o", path, "github.com/grailos/grail/"+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, b)
	}
	return path
}

// TestUpgrade upgrades a driver under a VM that writes and checks: to a good program, which outlives crashes of the driver and of graild, to bad
// ones of each kind, and back.
func TestUpgrade(t *testing.T) {
	other := buildProgram(t, "drivervms/blk/guest", "-s")
	bad := map[string]string{}
	for _, fails := range []string{"ready", "test", "attach"} {
		bad[fails] = buildProgram(t, "mgmt/e2e/testdata/baddriver", "-X main.fails="+fails)
	}
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20))
		v := r.verify("blk0/d", 4*time.Second)
		r.eventually("the client", r.serving("blk0", 1))
		r.t.Log(strings.TrimSpace(r.ctl("driver", "upgrade", "blk0", "--program", other)))
		digest := r.driver("blk0").Program
		if len(digest) != 64 {
			r.t.Errorf("it runs program %q", digest)
		}
		for fails, said := range map[string]string{"ready": "not ready within", "test": "the device smells odd", "attach": "serves with the old one again"} {
			begin := time.Now()
			out, code := r.run(nil, "driver", "upgrade", "blk0", "--program", bad[fails], "--deadline", "2s")
			r.t.Logf("%s: refused after %.1f s", fails, time.Since(begin).Seconds())
			if code == 0 || !strings.Contains(out, said) {
				r.t.Errorf("%s: exit code %d, %s", fails, code, out)
			}
			r.eventually("the good program after "+fails, func() bool {
				d := r.driver("blk0")
				return d.Program == digest && d.State == api.Ready
			})
		}
		n := r.driver("blk0").Generation
		r.ctl("driver", "crash", "blk0", "--how", "kill")
		r.eventually("recovered", func() bool {
			list := r.crashes("blk0")
			return r.serving("blk0", n+1)() && list[len(list)-1].RecoverMs > 0
		})
		if got := r.driver("blk0").Program; got != digest {
			r.t.Errorf("after a crash it runs program %q, want %q", got, digest)
		}
		r.killDaemon()
		r.ctl("driver", "crash", "blk0", "--how", "kill")
		r.eventually("recovered", r.serving("blk0", n+2))
		if got := r.driver("blk0").Program; got != digest {
			r.t.Errorf("after graild's death it runs program %q, want %q", got, digest)
		}
		r.ctl("driver", "upgrade", "blk0")
		if got := r.driver("blk0").Program; got != "" {
			r.t.Errorf("back at the installed program, it runs %q", got)
		}
		v.wait()
		injected := 0
		for _, c := range r.crashes("blk0") {
			if c.Injected != "" {
				injected++
			} else if c.Program == digest || c.Program == "" {
				r.t.Errorf("a crash of a good program: %+v", c)
			}
		}
		if injected != 2 {
			r.t.Errorf("%d crashes on request, want 2", injected)
		}
	})
}
