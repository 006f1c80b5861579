package e2e

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
)

// tux is a Linux VM of a test.
type tux struct {
	*rig
	name string
}

// exec runs a shell script in the VM and returns its output and exit code.
func (x tux) exec(script string) (string, int) {
	x.t.Helper()
	return x.runWithin(linuxLimit, nil, "exec", x.name, "--", "sh", "-c", script)
}

// must runs a shell script in the VM, which must succeed.
func (x tux) must(script string) string {
	x.t.Helper()
	out, code := x.exec(script)
	if code != 0 {
		x.t.Fatalf("%s: exit code %d, %s\n%s", script, code, out, x.ctl("logs", x.name))
	}
	return out
}

func (x tux) vm() api.VM {
	x.t.Helper()
	var v api.VM
	if err := json.Unmarshal([]byte(x.ctl("inspect", x.name, "--json")), &v); err != nil {
		x.t.Fatal(err)
	}
	return v
}

// ext4 makes an empty file system on a disk.
func ext4(t *testing.T, image string) {
	t.Helper()
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		mke2fs = "/usr/sbin/mke2fs"
	}
	if b, err := exec.Command(mke2fs, "-q", "-F", "-t", "ext4", image).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no file system can be made: %v %s", err, b)
	}
}

// TestLinuxPlug plugs disks and a network card into a Linux VM that runs, and takes them out again: never from under a guest that uses them,
// and never with something lost that the guest has written.
func TestLinuxPlug(t *testing.T) {
	r := linuxRig(t)
	files, raw := r.disk(16<<20), r.disk(1<<20)
	ext4(t, files)
	r.ctl("driver", "create", "blk", "blk0", "--socket", "--disk", "files="+files, "--disk", "raw="+raw)
	r.ctl("driver", "create", "net", "net0", "--port", "tux=1")
	r.ctl("create", "--personality", "linux", "--memory", "128M", "--name", "tux")
	x := tux{r, "tux"}
	attach := func(want string, args ...string) {
		t.Helper()
		if out := r.ctlWithin(linuxLimit, append([]string{"attach", "tux"}, args...)...); out != want {
			t.Errorf("attach %v: %q, want %q", args, out, want)
		}
	}
	refused := func(said string, args ...string) {
		t.Helper()
		if out, code := r.runWithin(linuxLimit, nil, args...); code != 125 || !strings.Contains(out, said) {
			t.Errorf("%v: exit code %d, %q, want %q", args, code, out, said)
		}
	}
	attach("blk0/files\n", "--disk", "blk0/files") // it does not run yet
	r.ctl("start", "tux")
	x.must("mount /dev/vda /mnt && echo kept >/mnt/file")
	attach("blk0/raw vdb\nnet0/tux eth0\n", "--disk", "blk0/raw", "--net", "net0/tux")
	refused("has blk0/raw already", "attach", "tux", "--disk", "blk0/raw")
	refused("no disk", "attach", "tux", "--disk", "blk0/none")
	refused("has no blk0/none", "detach", "tux", "--disk", "blk0/none")
	if out := x.must("nslookup tux"); !strings.Contains(out, "10.77.0.2") {
		t.Errorf("the network: %q", out)
	}

	refused("mounted at /mnt", "detach", "tux", "--disk", "blk0/files")
	x.must("sh -c 'exec 3</dev/vdb; echo $$ >/tmp/pid; sleep 600' >/dev/null 2>&1 & while ! [ -s /tmp/pid ]; do sleep 0.1; done")
	refused("open in process", "detach", "tux", "--disk", "blk0/raw")
	// Nobody asks for this to be on the disk.
	x.must("kill $(cat /tmp/pid); head -c 1048576 /dev/zero | tr '\\0' x | dd of=/dev/vdb bs=64k 2>/dev/null")
	r.ctlWithin(linuxLimit, "detach", "tux", "--disk", "blk0/raw", "--net", "net0/tux")
	if b, err := os.ReadFile(raw); err != nil || !bytes.Equal(b, bytes.Repeat([]byte("x"), 1<<20)) {
		t.Errorf("what was written before the disk was taken away is not on it: %v", err)
	}
	if out := x.must("ls /sys/block /sys/class/net"); strings.Contains(out, "vdb") || strings.Contains(out, "eth0") {
		t.Errorf("the guest still has %q", out)
	}
	x.must("echo more >>/mnt/file && umount /mnt")
	r.ctlWithin(linuxLimit, "detach", "tux", "--disk", "blk0/files")
	attach("blk0/files vda\nnet0/tux eth0\n", "--disk", "blk0/files", "--net", "net0/tux")

	// Whenever graild dies, what it says of the VM afterwards is what the VM has.
	for range 3 {
		delay := rand.N(600 * time.Millisecond)
		cmd := r.command("attach", "tux", "--disk", "blk0/raw")
		if v := x.vm(); len(v.Disks) > 1 {
			cmd = r.command("detach", "tux", "--disk", "blk0/raw")
		}
		v, err := r.client.Version(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		killed := make(chan struct{})
		timer := time.AfterFunc(delay, func() {
			defer close(killed)
			_ = unix.Kill(v.PID, unix.SIGKILL)
		})
		_ = runFor(cmd, time.Minute)
		if timer.Stop() {
			continue // it was faster
		}
		<-killed
		r.eventually("graild is gone", func() bool { // the command may have started the next one
			now, err := r.client.Version(t.Context())
			return api.Down(err) || err == nil && now.PID != v.PID
		})
		r.ctl("daemon", "start")
		r.eventually("graild and the guest agree", func() bool {
			has := strings.Contains(x.must("ls /sys/block"), "vdb")
			return has == (len(x.vm().Disks) > 1)
		})
		t.Logf("graild killed after %v: disks %v", delay, x.vm().Disks)
	}

	if out := x.must("mount /dev/vda /mnt && cat /mnt/file; umount /mnt"); out != "kept\nmore\n" {
		t.Errorf("the file: %q", out)
	}
	before := x.vm()
	r.ctlWithin(linuxLimit, "stop", "-t", "1m", "tux")
	r.ctl("start", "tux")
	if out := x.must("nslookup tux; ls /sys/block"); !strings.Contains(out, "10.77.0.2") || strings.Count(out, "vd") != len(before.Disks) {
		t.Errorf("after a new start with %v: %q", before.Disks, out)
	}
	r.ctlWithin(linuxLimit, "rm", "-f", "tux")
	if left, _ := os.ReadDir(filepath.Join(r.dirs.Run, "qemu")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
