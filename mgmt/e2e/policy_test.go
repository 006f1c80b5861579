package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtioblk"
)

const outsideSlots, outsideBlock = 8, 4096

// outside is a vhost-user client of a disk.
type outside struct {
	r     *rig
	front *vhostuser.Frontend
	blk   *ringtest.BlkClient
}

// outsider connects to the only disk of a new driver that offers sockets.
func (r *rig) outsider(name, disk string, flags ...string) *outside {
	r.t.Helper()
	line := append([]string{"driver", "create", "blk", name, "--engine", string(r.engine), "--disk", "d=" + disk, "--socket"}, flags...)
	return r.dialDisk(strings.Fields(r.ctl(line...))[2])
}

func (r *rig) dialDisk(socket string) *outside {
	r.t.Helper()
	front, err := vhostuser.Dial(r.t.Context(), socket, vhostuser.Options{Features: ring.FeatureVersion1 | ring.FeatureEventIdx | ring.FeatureIndirect | virtioblk.FeatureFlush})
	if err != nil {
		r.t.Fatal(err)
	}
	o := &outside{r: r, front: front}
	if o.blk, err = ringtest.NewBlkClient(64, outsideSlots+1, outsideBlock, 0); err != nil {
		r.t.Fatal(err)
	}
	if err := o.blk.Attach(front, 0); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(o.close)
	return o
}

func (o *outside) close() {
	if o.front != nil {
		o.front.Close()
		o.blk.Close()
		o.front = nil
	}
}

// submit publishes a request of each slot: of block i from the first sector on, filled with fill when it writes.
func (o *outside) submit(typ uint32, fill byte) {
	o.r.t.Helper()
	for i := range outsideSlots {
		b := o.blk.Data(i)
		for k := range b {
			b[k] = fill
		}
		if err := o.blk.Submit(i, typ, uint64(i)*outsideBlock/512, outsideBlock); err != nil {
			o.r.t.Fatal(err)
		}
	}
	if err := o.blk.Publish(); err != nil {
		o.r.t.Fatal(err)
	}
}

// submitMore publishes one request without data more.
func (o *outside) submitMore(typ uint32) {
	o.r.t.Helper()
	if err := o.blk.Submit(outsideSlots, typ, 0, 0); err != nil {
		o.r.t.Fatal(err)
	}
	if err := o.blk.Publish(); err != nil {
		o.r.t.Fatal(err)
	}
}

// reap waits for a request of each slot and returns how many there were of each status.
func (o *outside) reap() map[byte]int {
	o.r.t.Helper()
	return o.reapN(outsideSlots)
}

func (o *outside) reapN(n int) map[byte]int {
	o.r.t.Helper()
	got := map[byte]int{}
	for left := n; left > 0; {
		err := o.blk.Reap(30*time.Second, func(_ int, status byte) {
			left--
			got[status]++
		})
		if err != nil {
			o.r.t.Fatal(err)
		}
	}
	return got
}

// do performs a request of each slot, all of which must end with that status.
func (o *outside) do(typ uint32, fill, status byte) {
	o.r.t.Helper()
	o.submit(typ, fill)
	if got := o.reap(); got[status] != outsideSlots {
		o.r.t.Errorf("requests of type %d ended as %v, want %d", typ, got, status)
	}
}

// holds checks what the blocks hold.
func (o *outside) holds(fill byte) {
	o.r.t.Helper()
	o.do(virtioblk.TypeIn, 0, virtioblk.StatusOK)
	for i := range outsideSlots {
		if b := o.blk.Data(i); b[0] != fill || b[outsideBlock-1] != fill {
			o.r.t.Errorf("block %d holds %#x, want %#x", i, b[0], fill)
		}
	}
}

// A driver that cannot be started again, because its disk is gone, has its clients' requests fail after the time that policy fail says: those that were
// outstanding and new ones. When the disk is back, and the driver is told so, it serves again.
func TestPolicyFail(t *testing.T) {
	onEngines(t, func(r *rig) {
		disk := r.disk(8 << 20)
		o := r.outsider("blk0", disk)
		o.do(virtioblk.TypeOut, 7, virtioblk.StatusOK)
		r.ctl("driver", "set", "blk0", "--policy", "fail:500ms")
		pid := r.driver("blk0").PID
		r.killDaemon()
		if err := os.Rename(disk, disk+".away"); err != nil {
			r.t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			r.t.Fatal(err)
		}
		o.submit(virtioblk.TypeOut, 9) // nobody is there
		r.ctl("daemon", "start")
		if got := o.reap(); got[virtioblk.StatusIOErr] != outsideSlots {
			r.t.Errorf("outstanding requests ended as %v", got)
		}
		o.do(virtioblk.TypeIn, 0, virtioblk.StatusIOErr)
		o.do(virtioblk.TypeOut, 9, virtioblk.StatusIOErr)
		d := r.driver("blk0")
		if !d.Failing || d.State == api.Ready || !strings.Contains(r.ctl("driver", "ls"), "(I/O fails)") {
			r.t.Errorf("%s, failing %t", d.State, d.Failing)
		}
		// Another client comes, and another graild.
		r.killDaemon()
		r.eventually("it still fails", func() bool { return r.driver("blk0").Failing })
		late := r.dialDisk(d.Disks[0].Socket)
		late.do(virtioblk.TypeIn, 0, virtioblk.StatusIOErr)
		// Those who rather wait can.
		r.ctl("driver", "set", "blk0", "--policy", "stall")
		r.eventually("it does not fail any more", func() bool { return !r.driver("blk0").Failing })
		o.submit(virtioblk.TypeOut, 11)
		if err := os.Rename(disk+".away", disk); err != nil {
			r.t.Fatal(err)
		}
		r.run(nil, "driver", "resume", "blk0") // unless it has just tried by itself
		if got := o.reap(); got[virtioblk.StatusOK] != outsideSlots {
			r.t.Errorf("requests that waited ended as %v", got)
		}
		o.holds(11)
		late.holds(11)
		r.eventually("it serves", func() bool {
			d := r.driver("blk0")
			return !d.Failing && d.State == api.Ready
		})
		o.close()
		late.close()
		r.eventually("no clients", func() bool { return len(r.driver("blk0").Clients) == 0 })
	})
}
