package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/ring/virtioblk"
)

// diskFailed checks that a disk's failures were counted, told once, and that nobody took the driver for broken.
func (r *rig) diskFailed(name, why string) {
	r.t.Helper()
	r.eventually("the disk's errors are counted", func() bool { return r.driver(name).Disks[0].Errors > 0 })
	d := r.driver(name)
	if len(r.crashes(name)) != 0 || d.Generation != 1 || d.State != api.Ready {
		r.t.Errorf("the driver was replaced: %+v", d)
	}
	if !strings.Contains(d.Disks[0].LastError, why) {
		r.t.Errorf("last error %q, want %q", d.Disks[0].LastError, why)
	}
	for _, verb := range [][]string{{"inspect", name}, {"driver", "stats", name}} {
		if out := r.ctl(verb...); !strings.Contains(out, "d failed ") || !strings.Contains(out, why) {
			r.t.Errorf("%v does not tell of the disk:\n%s", verb, out)
		}
	}
	if out := r.ctl("events"); strings.Count(out, "disk error") != 1 {
		r.t.Errorf("events:\n%s", out)
	}
}

// A disk whose file was cut off fails what lies beyond its end, and serves the rest.
func TestDiskCutOff(t *testing.T) {
	onEngines(t, func(r *rig) {
		disk := r.disk(8 << 20)
		o := r.outsider("blk0", disk)
		o.do(virtioblk.TypeOut, 7, virtioblk.StatusOK)
		for range 60 { // until the driver reads from a mapping
			o.holds(7)
		}
		if err := os.Truncate(disk, outsideBlock); err != nil {
			r.t.Fatal(err)
		}
		for range 3 {
			o.submit(virtioblk.TypeIn, 0)
			if got := o.reap(); got[virtioblk.StatusIOErr] != outsideSlots-1 || got[virtioblk.StatusOK] != 1 {
				r.t.Errorf("requests ended as %v", got)
			}
		}
		r.diskFailed("blk0", "input/output error")
		if err := os.Truncate(disk, 8<<20); err != nil {
			r.t.Fatal(err)
		}
		o.do(virtioblk.TypeOut, 9, virtioblk.StatusOK)
		o.holds(9)
	})
}

// A disk on a file system that is full fails what has no room, and serves what has.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root for a mount namespace")
	}
	onEngines(t, func(r *rig) {
		r.ctl("daemon", "stop")
		dir := r.t.TempDir()
		// graild alone has the file system: it goes with its namespace.
		cmd := exec.Command("sh", "-ec", `mount --make-rprivate /
			mount -t tmpfs -o size=16k tmpfs "$1"
			truncate -s 1M "$1/disk.img"
			exec "$2" daemon start`, "sh", dir, filepath.Join(r.dir, "grailctl"))
		cmd.Env = r.command().Env
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			r.t.Skipf("SKIPPED: no mount namespace: %v, %s", err, out)
		}
		o := r.outsider("blk0", filepath.Join(dir, "disk.img"))
		o.submit(virtioblk.TypeOut, 7)
		got := o.reap()
		if got[virtioblk.StatusIOErr] != outsideSlots-4 || got[virtioblk.StatusOK] != 4 {
			r.t.Errorf("with room for 4 of %d blocks, writes ended as %v", outsideSlots, got)
		}
		o.submit(virtioblk.TypeOut, 8)
		if got = o.reap(); got[virtioblk.StatusOK] != 4 {
			r.t.Errorf("written again, they ended as %v", got)
		}
		r.diskFailed("blk0", "no space left on device")
		var stats api.DriverStats
		if err := json.Unmarshal([]byte(r.ctl("driver", "stats", "blk0", "--json")), &stats); err != nil {
			r.t.Fatal(err)
		}
		if n := stats.Clients[0].Counters["errors"]; n != 2*(outsideSlots-4) || stats.Disks[0].Errors != n {
			r.t.Errorf("%d errors of the client, %d of the disk", n, stats.Disks[0].Errors)
		}
	})
}
