package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
)

// linuxLimit is how long a Linux VM may take over anything: QEMU translates its code, on a machine with others.
const linuxLimit = 4 * time.Minute

// images is the tests' common folder of kernels. It lies with the programs, which are removed in the end.
func images(t *testing.T) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// linuxRig is a rig for Linux VMs.
func linuxRig(t *testing.T) *rig {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil || runtime.GOARCH != "amd64" {
		t.Skip("SKIPPED, NO ENGINE: qemu-system-x86_64 is not here (package qemu-system-x86)")
	}
	r := newRig(t, hv.EngineProcess)
	if err := os.Symlink(images(t), r.dirs.Images()); err != nil { // fetched and made once for all tests
		t.Fatal(err)
	}
	out, code := r.runWithin(linuxLimit, nil, "image", "prepare")
	if code != 0 {
		t.Skipf("SKIPPED: no kernel for Linux VMs can be had here: %s", out)
	}
	return r
}

// TestLinux boots one Linux VM with a disk of a driver VM, uses it in every way, and crashes its driver.
func TestLinux(t *testing.T) {
	r := linuxRig(t)
	image := r.disk(16 << 20)
	content := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	r.ctl("driver", "create", "blk", "blk0", "--socket", "--disk", "d="+image)
	r.ctl("create", "--personality", "linux", "--name", "tux", "--disk", "blk0/d")
	r.ctl("start", "tux")
	in := func(stdin []byte, want int, args ...string) string {
		t.Helper()
		out, code := r.runWithin(linuxLimit, stdin, append([]string{"exec", "tux", "--"}, args...)...)
		if code != want {
			t.Fatalf("%v: exit code %d, want %d; output %.2000q\n%s", args, code, want, out, r.ctl("logs", "tux"))
		}
		return out
	}
	if out := in(nil, 0, "uname", "-s"); out != "Linux\n" {
		t.Errorf("uname: %q", out)
	}
	in(nil, 42, "sh", "-c", "exit 42")
	in(nil, 127, "no-such-program")
	if out := in(content, 0, "sha256sum"); !strings.HasPrefix(out, fmt.Sprintf("%x", sha256.Sum256(content))) {
		t.Errorf("standard input: %q", out)
	}
	sum := func() string { return in(nil, 0, "sh", "-c", "dd if=/dev/vda bs=64k count=16 2>/dev/null | sha256sum") }
	if out := sum(); !strings.HasPrefix(out, fmt.Sprintf("%x", sha256.Sum256(content))) {
		t.Errorf("the disk: %q", out)
	}
	for i, how := range []string{"kill", "fault"} {
		in(nil, 0, "sh", "-c", fmt.Sprintf("(dd if=/dev/zero of=/dev/vda bs=4k seek=%d count=400 oflag=direct conv=notrunc && sync; echo $? >/tmp/done%d) >/dev/null 2>&1 &", 1000+i*400, i))
		r.ctl("driver", "crash", "blk0", "--how", how)
		out := in(nil, 0, "sh", "-c", fmt.Sprintf("while ! [ -s /tmp/done%d ]; do sleep 0.1; done; cat /tmp/done%d", i, i))
		if out != "0\n" {
			t.Errorf("writing while the driver dies (%s): %q", how, out)
		}
	}
	r.killDaemon()
	if out := in(nil, 0, "cat", "/proc/partitions"); !strings.Contains(out, "vda") {
		t.Errorf("after graild died: %q", out)
	}
	r.ctlWithin(linuxLimit, "stop", "-t", "1m", "tux")
	if out := r.ctl("ps", "-a"); !strings.Contains(out, "exited 0") && !strings.Contains(out, "stop") {
		t.Errorf("ps:\n%s", out)
	}
	r.ctl("rm", "tux")
	if b, err := os.ReadFile(image); err != nil || !bytes.Equal(b[:len(content)], content) {
		t.Errorf("the image's beginning was changed: %v", err)
	}
}

// TestLinuxRun runs one command in a VM of its own.
func TestLinuxRun(t *testing.T) {
	r := linuxRig(t)
	out, code := r.runWithin(linuxLimit, []byte("to the guest\n"), "run", "--rm", "--personality", "linux", "--", "sh", "-c", "cat; echo err >&2; exit 7")
	if code != 7 || out != "to the guest\nerr\n" {
		t.Errorf("exit code %d, output %q", code, out)
	}
	if _, err := os.Stat(filepath.Join(r.dirs.Run, "qemu")); err == nil {
		if left, _ := os.ReadDir(filepath.Join(r.dirs.Run, "qemu")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// TestLinuxEnds lets guests end in ways that nobody wants. Each is told from the others.
func TestLinuxEnds(t *testing.T) {
	r := linuxRig(t)
	for _, c := range []struct{ script, said string }{
		{"echo c >/proc/sysrq-trigger; sleep 100", "kernel panicked"},
		{"reboot -f; sleep 100", "the guest rebooted"},
	} {
		out, code := r.runWithin(linuxLimit, nil, "run", "--rm", "--personality", "linux", "--", "sh", "-c", c.script)
		if code != 125 || !strings.Contains(out, c.said) {
			t.Errorf("%s: exit code %d, output %q, want %q", c.script, code, out, c.said)
		}
	}
	r.ctl("create", "--personality", "linux", "--name", "tux")
	r.ctl("start", "tux")
	var v struct{ PID int }
	if err := json.Unmarshal([]byte(r.ctl("inspect", "tux", "--json")), &v); err != nil || v.PID == 0 {
		t.Fatalf("PID %d: %v", v.PID, err)
	}
	// The VM's process is the first of its PID namespace: all of the VM goes with it.
	if err := unix.Kill(v.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.eventually("the end is noticed", func() bool { return strings.Contains(r.ctl("inspect", "tux"), "killed") })
	if out, code := r.run(nil, "exec", "tux", "--", "true"); code != 125 || !strings.Contains(out, "does not run") {
		t.Errorf("exec in a dead VM: exit code %d, output %q", code, out)
	}
	r.ctl("rm", "tux")
}

// TestLinuxRoot builds a root disk and boots from it, once read only and once for writing.
func TestLinuxRoot(t *testing.T) {
	r := linuxRig(t)
	disk := r.ownImage("64M")
	before, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	run := func(ref, script string) string {
		t.Helper()
		out, code := r.runWithin(linuxLimit, nil, "run", "--rm", "--personality", "linux", "--root", ref, "--", "sh", "-c", script)
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		return out
	}
	r.ctl("driver", "create", "blk", "ro", "--socket", "--disk", "root="+disk+":ro")
	if out := run("ro/root:ro", "cat /etc/motd; touch /made && ls /made"); out != "hello from the image\n/made\n" {
		t.Errorf("read only: %q", out)
	}
	r.ctl("driver", "rm", "--force", "ro")
	if after, err := os.ReadFile(disk); err != nil || !bytes.Equal(before, after) {
		t.Error("a disk that is only read was changed")
	}
	r.ctl("driver", "create", "blk", "rw", "--socket", "--disk", "root="+disk)
	run("rw/root", "echo kept >/made; sync")
	if out := run("rw/root", "cat /made"); out != "kept\n" {
		t.Errorf("for writing: %q", out)
	}
	r.ctl("driver", "rm", "--force", "rw")
	r.ctl("image", "rm", "own")
}

// TestLinuxNetwork plugs three Linux VMs of two tenants into one switch. Those of one tenant reach each other, by name too, also while the
// switch is crashed; the third reaches nobody.
func TestLinuxNetwork(t *testing.T) {
	r := linuxRig(t)
	r.ctl("driver", "create", "net", "net0", "--subnet", "10.88.0.0/24", "--port", "web=1,queues=2", "--port", "user=1,queues=2", "--port", "stranger=2",
		"--port", "native=1", "--port", "alone=2")
	for _, name := range []string{"web", "user", "stranger"} {
		r.ctl("create", "--personality", "linux", "--memory", "128M", "--cpu", "1", "--name", name, "--net", "net0/"+name)
		r.ctl("start", name)
	}
	in := func(vm string, script string) (string, int) {
		t.Helper()
		return r.runWithin(linuxLimit, nil, "exec", vm, "--", "sh", "-c", script)
	}
	const size = 3 << 20
	if out, code := in("web", fmt.Sprintf("mkdir /tmp/www && head -c %d /dev/urandom >/tmp/www/file && httpd -h /tmp/www && sha256sum </tmp/www/file", size)); code != 0 {
		t.Fatalf("the server: %d, %s", code, out)
	}
	want, _ := in("web", "sha256sum </tmp/www/file")
	fetch := "wget -q -O - http://web/file | sha256sum"
	if out, code := in("user", fetch); code != 0 || out != want {
		t.Errorf("fetched %q, want %q, exit code %d", out, want, code)
	}
	// The connection is not lost when the switch is.
	for i, how := range []string{"kill", "fault"} {
		if out, code := in("user", fmt.Sprintf("(%s >/tmp/sum%d; echo >>/tmp/sum%d) >/dev/null 2>&1 &", fetch, i, i)); code != 0 {
			t.Fatal(out)
		}
		r.ctl("driver", "crash", "net0", "--how", how)
		out, _ := in("user", fmt.Sprintf("while [ $(wc -l </tmp/sum%d) -lt 2 ]; do sleep 0.2; done; cat /tmp/sum%d", i, i))
		if strings.TrimSpace(out) != strings.TrimSpace(want) {
			t.Errorf("while the switch dies (%s): fetched %q, want %q", how, out, want)
		}
	}
	if out, code := in("stranger", "ping -c 2 -W 2 10.88.0.2"); code == 0 || !strings.Contains(out, "100% packet loss") {
		t.Errorf("another tenant's ping: exit code %d, %q", code, out)
	}
	if out, code := in("stranger", "nslookup web"); code == 0 {
		t.Errorf("another tenant's name: %q", out)
	}
	// From another address than its own nobody is answered.
	if out, code := in("user", "ip addr add 10.88.0.99/24 dev eth0 && ping -c 2 -W 2 -I 10.88.0.99 10.88.0.2"); code == 0 {
		t.Errorf("a made up address: %q", out)
	}
	// Native VMs are neighbours as any other.
	r.startServer("small", "native")
	if out, code := in("user", "ping -c 2 -W 5 small"); code != 0 {
		t.Errorf("a native VM: exit code %d, %q", code, out)
	}
	if out, code := r.run(nil, r.netcheck("alone", "ping", "10.88.0.2")...); code != 1 {
		t.Errorf("a native VM of another tenant: exit code %d, %q", code, out)
	}
	r.ctl("rm", "-f", "small")
	r.ctl("driver", "crash", "net0", "--how", "kill")
	if out := r.ctl(r.netcheck("native", "ping", "web")...); strings.Count(out, "answer from 10.88.0.2") != 3 {
		t.Errorf("from a native VM: %q", out)
	}
	if out, code := r.run(nil, r.netcheck("web", "serve")...); code != 125 || !strings.Contains(out, "in use by") {
		t.Errorf("a port that a Linux VM has: exit code %d, %q", code, out)
	}
	r.ctlWithin(linuxLimit, "rm", "-f", "web", "user", "stranger")
}

// TestLinuxOfAnotherArchitecture runs an arm64 guest on a disk that an amd64 driver VM serves.
func TestLinuxOfAnotherArchitecture(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-aarch64"); err != nil {
		t.Skip("SKIPPED: qemu-system-aarch64 is not here (package qemu-system-arm)")
	}
	r := linuxRig(t)
	if out, code := r.runWithin(linuxLimit, nil, "image", "prepare", "--arch", "arm64"); code != 0 {
		t.Skipf("SKIPPED: no arm64 kernel can be had here: %s", out)
	}
	image := r.disk(1 << 20)
	content := bytes.Repeat([]byte("fedcba987654321\n"), 1<<16)
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	r.ctl("driver", "create", "blk", "blk0", "--socket", "--disk", "d="+image+":ro")
	out, code := r.runWithin(linuxLimit, nil, "run", "--rm", "--personality", "linux", "--arch", "arm64", "--disk", "blk0/d:ro", "--",
		"sh", "-c", "uname -m; sha256sum </dev/vda; dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null || echo refused")
	want := fmt.Sprintf("aarch64\n%x  -\nrefused\n", sha256.Sum256(content))
	if code != 0 || out != want {
		t.Errorf("exit code %d, output %q, want %q", code, out, want)
	}
}
