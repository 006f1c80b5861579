package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtioblk"
)

// verifier is a VM that writes and checks a disk until it is told to stop.
type verifier struct {
	r   *rig
	cmd *exec.Cmd
	out bytes.Buffer
}

// verify starts a VM that writes to a disk and checks what it reads for a time.
func (r *rig) verify(disk string, d time.Duration, flags ...string) *verifier {
	r.t.Helper()
	v := &verifier{r: r}
	d = (d + 15*r.unit).Round(time.Second)
	line := append([]string{"run", "--rm", "--name", "v", "--engine", string(r.engine), "--disk", disk}, flags...)
	v.cmd = r.command(append(line, "--", filepath.Join(r.dir, "verify"), "-disk", filepath.Base(disk), "-mib", "16", "-seed", "7", "-time", d.String())...)
	v.cmd.Stdout, v.cmd.Stderr = &v.out, &v.out
	if err := v.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return v
}

// wait returns when the VM has ended, which must have found no error.
func (v *verifier) wait() {
	v.r.t.Helper()
	if got := code(v.r.t, v.cmd.Wait()); got != 0 || !strings.Contains(v.out.String(), "ok") {
		v.r.t.Errorf("verify: exit code %d:\n%s", got, v.out.String())
	}
	lines := strings.Split(strings.TrimSpace(v.out.String()), "\n")
	v.r.t.Log(lines[len(lines)-1])
}

// serving reports whether generation n of the driver serves one client.
func (r *rig) serving(name string, generation int) func() bool {
	return func() bool {
		d := r.driver(name)
		return d.State == api.Ready && d.Generation >= generation && len(d.Clients) == 1 && d.Clients[0].Attached
	}
}

func TestDriverCrashes(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20))
		v := r.verify("blk0/d", 2*time.Second)
		r.eventually("the client", r.serving("blk0", 1))
		how := []string{"kill", "fault", "hang"}
		for i, h := range how {
			r.ctl("driver", "crash", "blk0", "--how", h)
			r.eventually("recovered from "+h, r.serving("blk0", i+2))
		}
		v.wait()
		list := r.crashes("blk0")
		if len(list) != len(how) {
			r.t.Fatalf("%d crash records, want %d: %+v", len(list), len(how), list)
		}
		for i, c := range list {
			r.t.Logf("%s: %s, recovered in %.1f ms", how[i], c.Message, c.RecoverMs)
			if c.Injected != how[i] || c.Attached.IsZero() || c.RecoverMs <= 0 {
				r.t.Errorf("%s: %+v", how[i], c)
			}
		}
		if c := list[0].Cause; c != hv.CauseKilled {
			r.t.Errorf("kill: cause %s", c)
		}
		if c := list[1].Cause; c != hv.CauseSignal && c != hv.CauseExit {
			r.t.Errorf("fault: cause %s", c)
		}
		if tr := list[1].Trace; r.engine == hv.EngineKVM && (tr == nil || tr.Instruction == "" || len(tr.Stack) == 0 || !strings.HasSuffix(tr.Stack[0].Func, "program.poke")) {
			r.t.Errorf("fault: trace %+v", tr)
		}
		if len(list[1].Report.Console) == 0 {
			r.t.Error("fault: no console lines")
		}
		if c := list[2].Cause; c != hv.CauseHang {
			r.t.Errorf("hang: cause %s", c)
		}
		shown := r.ctl("crash", "show", fmt.Sprint(list[2].ID))
		for _, want := range []string{"hang on request", "phases", "IN FLIGHT"} {
			if !strings.Contains(shown, want) {
				r.t.Errorf("crash show without %q:\n%s", want, shown)
			}
		}
		if l := r.ctl("crash", "ls", "blk0"); strings.Count(l, "\n") != len(how)+1 {
			r.t.Errorf("crash ls:\n%s", l)
		}
		events := r.ctl("events")
		if strings.Count(events, "driver died") != len(how) || strings.Count(events, "driver recovered") != len(how) {
			r.t.Errorf("events:\n%s", events)
		}
		r.ctl("driver", "restart", "blk0")
		r.ctl("driver", "rm", "blk0")
	})
}

// graild is killed, then graild and the driver together, under a VM that writes and checks.
func TestDaemonDiesUnderLoad(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20))
		v := r.verify("blk0/d", 2*time.Second)
		r.eventually("the client", r.serving("blk0", 1))
		r.killDaemon()
		r.eventually("adopted", r.serving("blk0", 1))
		r.ctl("driver", "crash", "blk0", "--how", "hang")
		r.eventually("recovered", r.serving("blk0", 2))
		pid := r.driver("blk0").PID
		r.killDaemon()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			r.t.Fatal(err)
		}
		r.eventually("replaced", r.serving("blk0", 3))
		v.wait()
		if n := len(r.crashes("blk0")); n != 2 {
			r.t.Errorf("%d crash records, want 2", n)
		}
		r.eventually("no clients", func() bool { return len(r.driver("blk0").Clients) == 0 })
		r.ctl("driver", "rm", "blk0")
	})
}

func TestDriverRules(t *testing.T) {
	onEngines(t, func(r *rig) {
		disk := r.disk(32 << 20)
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+disk)
		if out, code := r.run(nil, "driver", "create", "blk", "blk1", "--disk", "d="+disk); code != api.ExitError || !strings.Contains(out, "driver blk0") {
			r.t.Errorf("two drivers on one file: exit code %d: %s", code, out)
		}
		v := r.verify("blk0/d", time.Second)
		r.eventually("the client", r.serving("blk0", 1))
		if out, code := r.run(nil, "driver", "rm", "blk0"); code != api.ExitError || !strings.Contains(out, "has clients: v") {
			r.t.Errorf("rm with clients: exit code %d: %s", code, out)
		}
		v.wait()
		// Read-only, on the side of the client.
		out, code := r.run(nil, "run", "--rm", "--engine", string(r.engine), "--disk", "blk0/d:ro", "--",
			filepath.Join(r.dir, "verify"), "-disk", "d", "-mib", "16", "-ops", "10")
		if code == 0 {
			r.t.Errorf("a read-only disk was written: %s", out)
		}
		r.ctl("driver", "rm", "blk0")
	})
}

// A vhost-user client works through the driver's socket while the driver is crashed.
func TestVhostUserClient(t *testing.T) {
	onEngines(t, func(r *rig) {
		out := r.ctl("driver", "create", "blk", "vu", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20), "--socket")
		fields := strings.Fields(out)
		if len(fields) != 3 || fields[1] != "d" {
			r.t.Fatalf("driver create --socket: %q", out)
		}
		f, err := vhostuser.Dial(t.Context(), fields[2], vhostuser.Options{Features: ring.FeatureVersion1 | ring.FeatureEventIdx | ring.FeatureIndirect | virtioblk.FeatureFlush})
		if err != nil {
			r.t.Fatal(err)
		}
		defer f.Close()
		const slots, block = 16, 4096
		c, err := ringtest.NewBlkClient(64, slots, block, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		defer c.Close()
		if err := c.Attach(f, 0); err != nil {
			r.t.Fatal(err)
		}
		seed := rand.Uint64()
		r.t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		want := map[uint64]byte{}
		batch := func(typ uint32) {
			r.t.Helper()
			var sectors [slots]uint64
			for i, n := range rng.Perm(1024)[:slots] {
				sectors[i] = uint64(n) * block / 512
				fill := byte(0xee)
				if typ == virtioblk.TypeOut {
					fill = byte(rng.Uint32())
					want[sectors[i]] = fill
				}
				b := c.Data(i)
				for k := range b {
					b[k] = fill
				}
				if err := c.Submit(i, typ, sectors[i], block); err != nil {
					r.t.Fatal(err)
				}
			}
			if err := c.Publish(); err != nil {
				r.t.Fatal(err)
			}
			for left := slots; left > 0; {
				err := c.Reap(30*time.Second, func(slot int, status byte) {
					left--
					if status != virtioblk.StatusOK {
						r.t.Errorf("request for sector %d: status %d", sectors[slot], status)
					}
					if b := c.Data(slot); typ == virtioblk.TypeIn && (b[0] != want[sectors[slot]] || b[block-1] != b[0]) {
						r.t.Errorf("sector %d holds %#x, want %#x", sectors[slot], b[0], want[sectors[slot]])
					}
				})
				if err != nil {
					r.t.Fatal(err)
				}
			}
		}
		for i, how := range []string{"kill", "hang", "fault"} {
			for range 20 {
				batch(virtioblk.TypeOut)
				batch(virtioblk.TypeIn)
			}
			r.ctl("driver", "crash", "vu", "--how", how)
			batch(virtioblk.TypeOut)
			batch(virtioblk.TypeIn)
			r.eventually(fmt.Sprintf("recovered from %s", how), r.serving("vu", i+2))
		}
		if _, err := f.Stop(0); err != nil {
			r.t.Error(err)
		}
		r.eventually("no clients", func() bool { return len(r.driver("vu").Clients) == 0 })
	})
}
