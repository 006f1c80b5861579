package e2e

import (
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/ring/virtioblk"
)

// slay kills the driver's present process, once it has another one than the last time; 0 for any. It returns the process.
func (r *rig) slay(name string, last int) (pid int) {
	r.t.Helper()
	r.eventually("a process of "+name, func() bool {
		d, err := r.client.Driver(r.t.Context(), name)
		pid = d.PID
		return err == nil && pid != 0 && pid != last
	})
	_ = unix.Kill(pid, unix.SIGKILL) // it may have died by itself
	return pid
}

// ready reports whether the driver serves all its clients.
func (r *rig) ready(name string) func() bool {
	return func() bool {
		d := r.driver(name)
		for _, c := range d.Clients {
			if !c.Attached {
				return false
			}
		}
		return d.State == api.Ready
	}
}

// Successors die as soon as they are there: while they boot, are attached, and replay what was in flight.
func TestCrashDuringRecovery(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--spares", "2", "--disk", "d="+r.disk(32<<20))
		v := r.verify("blk0/d", time.Second)
		r.eventually("the client", r.serving("blk0", 1))
		last := 0
		for range 6 {
			last = r.slay("blk0", last)
		}
		r.eventually("it serves", func() bool { return r.ready("blk0")() && r.driver("blk0").PID != last })
		v.wait()
		if n := len(r.crashes("blk0")); n < 6 {
			r.t.Errorf("%d crash records", n)
		}
	})
}

// The driver dies while it is being upgraded, at any point of that. Either program may be the one that serves afterwards, and the client does not notice.
func TestCrashDuringUpgrade(t *testing.T) {
	other := buildProgram(t, "drivervms/blk/guest", "-s")
	onEngines(t, func(r *rig) {
		seed := rand.Uint64()
		r.t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20))
		v := r.verify("blk0/d", 2*time.Second)
		r.eventually("the client", r.serving("blk0", 1))
		for range 4 {
			pid := r.driver("blk0").PID
			done := make(chan string)
			go func() {
				out, _ := r.command("driver", "upgrade", "blk0", "--program", other).CombinedOutput()
				done <- string(out)
			}()
			after := time.NewTimer(time.Duration(rng.IntN(150)) * time.Millisecond)
			<-after.C
			_ = unix.Kill(pid, unix.SIGKILL)
			r.t.Log(<-done)
			r.eventually("it serves", r.ready("blk0"))
		}
		v.wait()
	})
}

// Both drivers of one VM die at once, and graild with them the second time.
func TestBothDriversDie(t *testing.T) {
	onEngines(t, func(r *rig) {
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+r.disk(32<<20))
		r.ctl("driver", "create", "net", "net0", "--engine", string(r.engine), "--port", "a")
		v := r.verify("blk0/d", 2*time.Second, "--net", "net0/a")
		for _, name := range []string{"blk0", "net0"} {
			r.eventually("the client of "+name, func() bool { return len(r.driver(name).Clients) > 0 && r.ready(name)() })
		}
		for _, daemon := range []bool{false, true} {
			blk, net := r.driver("blk0").PID, r.driver("net0").PID
			for _, pid := range []int{blk, net} {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					r.t.Fatal(err)
				}
			}
			if daemon {
				r.killDaemon()
			}
			r.eventually("both serve", func() bool {
				return r.ready("blk0")() && r.ready("net0")() && r.driver("blk0").PID != blk && r.driver("net0").PID != net
			})
		}
		v.wait()
	})
}

// graild dies between a driver's death and its replacement, each time a little later.
func TestDaemonDiesDuringRecovery(t *testing.T) {
	onEngines(t, func(r *rig) {
		o := r.outsider("blk0", r.disk(8<<20), "--spares", "1")
		last := 0
		for i := range 6 {
			fill := byte(i + 1)
			o.do(virtioblk.TypeOut, fill, virtioblk.StatusOK)
			v, err := r.client.Version(r.t.Context())
			if err != nil {
				r.t.Fatal(err)
			}
			last = r.slay("blk0", last)
			after := time.NewTimer(time.Duration(i) * 700 * time.Microsecond)
			<-after.C
			if err := unix.Kill(v.PID, unix.SIGKILL); err != nil {
				r.t.Fatal(err)
			}
			o.submit(virtioblk.TypeOut, fill+100)
			r.ctl("daemon", "start")
			if got := o.reap(); got[virtioblk.StatusOK] != outsideSlots {
				r.t.Errorf("requests ended as %v", got)
			}
			o.holds(fill + 100)
		}
	})
}

// A driver with a hundred clients dies: all of them go on.
func TestHundredClients(t *testing.T) {
	onEngines(t, func(r *rig) {
		const clients = 100
		list := []*outside{r.outsider("blk0", r.disk(8<<20))}
		socket := r.driver("blk0").Disks[0].Socket
		for len(list) < clients {
			list = append(list, r.dialDisk(socket))
		}
		r.eventually("a hundred clients", func() bool { return len(r.driver("blk0").Clients) == clients && r.ready("blk0")() })
		r.eventually("a spare", func() bool { return r.driver("blk0").Spare })
		for round, how := range []string{"kill", "hang"} {
			for _, o := range list {
				o.submit(virtioblk.TypeOut, byte(round+1))
			}
			r.ctl("driver", "crash", "blk0", "--how", how)
			for _, o := range list {
				o.submitMore(virtioblk.TypeFlush)
			}
			for i, o := range list {
				if got := o.reapN(outsideSlots + 1); got[virtioblk.StatusOK] != outsideSlots+1 {
					r.t.Errorf("client %d: %v", i, got)
				}
			}
			r.eventually("it serves all", r.ready("blk0"))
			list[clients-1].holds(byte(round + 1))
		}
		for _, c := range r.crashes("blk0") {
			r.t.Logf("%s: %d clients served again after %.1f ms: ready +%v, attached +%v", c.Cause, c.Clients, c.RecoverMs, c.Ready.Sub(c.Crashed), c.Attached.Sub(c.Crashed))
		}
	})
}

// A client dies while its driver is being replaced; the others go on, and nothing is left of it.
func TestClientDiesDuringRecovery(t *testing.T) {
	onEngines(t, func(r *rig) {
		stays := r.outsider("blk0", r.disk(8<<20), "--spares", "0")
		socket := r.driver("blk0").Disks[0].Socket
		last := 0
		for i := range 4 {
			goes := r.dialDisk(socket)
			goes.do(virtioblk.TypeOut, 1, virtioblk.StatusOK)
			stays.do(virtioblk.TypeOut, byte(i), virtioblk.StatusOK)
			goes.submit(virtioblk.TypeIn, 0)
			last = r.slay("blk0", last)
			goes.close()
			stays.holds(byte(i))
			r.eventually("one client", func() bool { return len(r.driver("blk0").Clients) == 1 && r.ready("blk0")() })
		}
		// A VM of its own, too, with its disk.
		r.ctl("create", "--name", "w", "--engine", string(r.engine), "--disk", "blk0/d", "--", filepath.Join(r.dir, "verify"), "-disk", "d", "-mib", "4", "-time", "1m")
		r.ctl("start", "w")
		r.eventually("its disk", func() bool { return len(r.driver("blk0").Clients) == 2 && r.ready("blk0")() })
		r.slay("blk0", last)
		r.ctl("rm", "--force", "w")
		r.eventually("one client", func() bool { return len(r.driver("blk0").Clients) == 1 && r.ready("blk0")() })
	})
}
