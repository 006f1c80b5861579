package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/images/busybox"
)

// TestLinuxDoesNotStart lets VMs begin with what no guest can boot from. Each says why it failed, with the console's last lines where there
// is a guest that printed some.
func TestLinuxDoesNotStart(t *testing.T) {
	r := linuxRig(t)
	shared := images(t)
	disk := r.ownImage("64M")
	fails := func(what, said string, flags ...string) {
		t.Helper()
		args := append(append([]string{"run", "--rm", "--personality", "linux"}, flags...), "--", "true")
		out, code := r.runWithin(linuxLimit, nil, args...)
		if code != 125 && code != 126 || !strings.Contains(out, said) {
			t.Errorf("%s: exit code %d, %q, want %q", what, code, out, said)
		}
	}
	// A file system that is larger than its disk, and a disk without any.
	if err := os.Truncate(disk, 16<<20); err != nil {
		t.Fatal(err)
	}
	fails("an image larger than its disk", "mount /dev/vda (ext4)", "--image", "own")
	junk := r.disk(1 << 20)
	r.ctl("driver", "create", "blk", "junk", "--socket", "--disk", "d="+junk+":ro")
	fails("a root disk without a file system", "holds no ext4, erofs or squashfs", "--root", "junk/d:ro")

	// Another folder with the same names: a guest that never starts its agent.
	own := t.TempDir()
	for _, name := range []string{"kernel", "disks"} {
		if err := os.Symlink(filepath.Join(shared, name), filepath.Join(own, name)); err != nil {
			t.Fatal(err)
		}
	}
	initrds, _ := filepath.Glob(filepath.Join(shared, "initrd-amd64-*"))
	box, err := exec.LookPath("busybox")
	if len(initrds) != 1 || err != nil {
		t.Fatalf("initial file systems %v, busybox: %v", initrds, err)
	}
	tree := busybox.Tree(box)
	tree.Data("/init", []byte("#!/bin/sh\necho no agent lives here\nexec sleep 1000\n"), 0o755)
	if err := tree.Write(filepath.Join(own, filepath.Base(initrds[0]))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.dirs.Images()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(own, r.dirs.Images()); err != nil {
		t.Fatal(err)
	}
	limit := 5*time.Second + 100*r.unit
	fails("no agent", "no agent lives here", "--boot-timeout", limit.String())
	fails("no agent, in no time", "not within 200ms", "--boot-timeout", "200ms")

	// And a kernel that is none.
	if err := os.Remove(filepath.Join(own, "kernel")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(own, "kernel/amd64/boot"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(shared, "kernel/amd64/lib"), filepath.Join(own, "kernel/amd64/lib")); err != nil {
		t.Fatal(err)
	}
	kernels, _ := filepath.Glob(filepath.Join(shared, "kernel/amd64/boot/vmlinuz-*"))
	if len(kernels) != 1 {
		t.Fatalf("kernels: %v", kernels)
	}
	if err := os.WriteFile(filepath.Join(own, "kernel/amd64/boot", filepath.Base(kernels[0])), bytes.Repeat([]byte("no kernel"), 1<<13), 0o644); err != nil {
		t.Fatal(err)
	}
	fails("a bad kernel", "kernel", "--boot-timeout", "30s")
}

// TestLinuxHostFull fills the host's file system below a guest's disk, and then kills QEMU with the disks in use. The guest gets I/O errors
// where there is no room, and nothing else stops.
func TestLinuxHostFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: to mount a small file system one has to be root")
	}
	r := linuxRig(t)
	// graild, and all that it starts, gets a mount namespace with a small file system.
	small := t.TempDir()
	r.ctl("daemon", "stop")
	start := exec.Command("sh", "-c", `mount --make-rprivate / && mount -t tmpfs -o size=4m grail "$1" && truncate -s 32M "$1/full" && exec "$2" daemon start`,
		"sh", small, filepath.Join(r.dir, "grailctl"))
	start.Env = r.command().Env
	start.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if b, err := start.CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no mount namespace: %v %s", err, b)
	}
	fine := r.disk(8 << 20)
	r.ctl("driver", "create", "blk", "blk0", "--socket", "--disk", "full="+filepath.Join(small, "full"), "--disk", "fine="+fine)
	r.ctl("create", "--personality", "linux", "--memory", "128M", "--name", "tux", "--disk", "blk0/full", "--disk", "blk0/fine")
	x := tux{r, "tux"}
	r.ctl("start", "tux")
	out := x.must("dd if=/dev/zero bs=64k count=16 2>/dev/null | tr '\\0' y >/tmp/y; dd if=/tmp/y of=/dev/vda bs=64k oflag=direct 2>/dev/null && echo room; " +
		"dd if=/dev/zero of=/dev/vda bs=64k seek=16 oflag=direct 2>&1 | grep -o 'Input/output error'; " +
		"dd if=/dev/vda bs=64k count=16 2>/dev/null | cmp - /tmp/y && echo same; dd if=/tmp/y of=/dev/vdb bs=64k oflag=direct 2>/dev/null && echo other")
	if out != "room\nInput/output error\nsame\nother\n" {
		t.Errorf("a full host: %q\n%s", out, r.ctl("logs", "tux"))
	}
	if d := r.driver("blk0"); d.Crashes != 0 || d.State != "ready" {
		t.Errorf("the driver is %s after %d crashes", d.State, d.Crashes)
	}

	x.must("(while :; do dd if=/tmp/y of=/dev/vdb bs=64k oflag=direct; done) >/dev/null 2>&1 &")
	if err := unix.Kill(r.qemuOf(x.vm().PID), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.eventually("the end is noticed", func() bool { return x.vm().State == "exited" })
	if m := x.vm().Report; m == nil || !strings.Contains(m.Message, "SIGKILL") {
		t.Errorf("the report: %+v", m)
	}
	if d := r.driver("blk0"); d.Crashes != 0 || d.State != "ready" {
		t.Errorf("the driver is %s after %d crashes", d.State, d.Crashes)
	}
	r.ctl("start", "tux")
	if out := x.must("dd if=/dev/vdb bs=64k count=16 2>/dev/null | tr -d y | wc -c"); strings.TrimSpace(out) != "0" {
		t.Errorf("the disk after QEMU was killed: %q", out)
	}
}

// qemuOf returns the process of QEMU that the process of a Linux VM has started.
func (r *rig) qemuOf(pid int) int {
	r.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range tasks {
		if more, err := os.ReadFile(path); err == nil {
			b = append(b, more...)
		}
	}
	for f := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			return n
		}
	}
	r.t.Fatalf("process %d has no child: %v", pid, err)
	return 0
}

// TestLinuxTerminal runs a VM's program on a terminal, whose size changes, and on which Ctrl-C is typed. While the VM boots, graild is killed.
func TestLinuxTerminal(t *testing.T) {
	r := linuxRig(t)
	master, path, err := console.NewPty()
	if err != nil {
		t.Skipf("SKIPPED: no terminal: %v", err)
	}
	defer master.Close()
	resize := func(rows, columns uint16) {
		t.Helper()
		if err := master.Resize(console.WinSize{Height: rows, Width: columns}); err != nil {
			t.Fatal(err)
		}
	}
	resize(24, 80)
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := r.command("run", "--rm", "--name", "tux", "--memory", "128M", "--personality", "linux", "-t", "--", "sh", "-c",
		`stty size; until [ "$(stty size)" = "50 132" ]; do sleep 0.1; done; trap 'echo caught; exit 9' INT; echo resized; while :; do sleep 0.1; done`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	defer cmd.Process.Kill()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	output := make(chan string)
	go func() {
		defer close(output)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			if n > 0 {
				output <- string(b[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	said := ""
	until := func(want string) {
		t.Helper()
		limit := time.After(linuxLimit)
		for !strings.Contains(said, want) {
			select {
			case s, ok := <-output:
				if said += s; !ok {
					t.Fatalf("it ended after %q, without %q", said, want)
				}
			case <-limit:
				t.Fatalf("it says %q, not %q", said, want)
			}
		}
	}
	r.eventually("the VM is there", func() bool { return strings.Contains(r.ctl("ps"), "tux") })
	r.killDaemon()
	until("24 80")
	resize(50, 132)
	until("resized")
	if _, err := io.WriteString(master, "\x03"); err != nil {
		t.Fatal(err)
	}
	until("caught")
	go func() {
		for range output {
		}
	}()
	select {
	case err := <-ended:
		if n := code(t, err); n != 9 {
			t.Errorf("exit code %d, want 9; it said %q", n, said)
		}
	case <-time.After(linuxLimit):
		t.Error("it does not end")
	}
}
