package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/images/busybox"
	"github.com/grailos/grail/images/initramfs"
	"github.com/grailos/grail/images/kernel"
	"github.com/grailos/grail/personalities/linux/agent"
	"github.com/grailos/grail/personalities/linux/agent/pack"
)

const qemu = "qemu-system-x86_64"

// guestFiles returns a kernel and the initial file system of the default image.
func guestFiles(t *testing.T) (*kernel.Kernel, string) {
	t.Helper()
	if _, err := exec.LookPath(qemu); err != nil {
		t.Skipf("no %s: the agent is not booted", qemu)
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the emulated machine is an x86-64")
	}
	cache, err := filepath.Abs(filepath.Join("..", "..", "..", "..", "build"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	k, err := kernel.Fetch(ctx, filepath.Join(cache, "kernel"), "amd64")
	if err != nil {
		t.Skipf("no kernel, is there a network? %v", err)
	}
	shell, err := busybox.Fetch(ctx, filepath.Join(cache, "busybox"), "amd64")
	if err != nil {
		t.Skipf("no busybox, is there a network? %v", err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "grail-init")
	build := exec.Command("go", "build", "-trimpath", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tree := busybox.Tree(shell)
	if err := pack.Add(tree, k, program); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "initramfs")
	if err := tree.Write(out); err != nil {
		t.Fatal(err)
	}
	return k, out
}

// vm is an emulated machine.
type vm struct {
	c       *agent.Client
	console string // file
	done    chan error
	begin   time.Time
}

// boot starts a machine with the configuration, and waits for its agent.
func boot(t *testing.T, k *kernel.Kernel, base string, config *agent.Config, args ...string) *vm {
	t.Helper()
	dir := t.TempDir()
	settings, err := pack.Config(config)
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(dir, "initrd")
	out, err := os.Create(initrd)
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(initramfs.Concat(out, in, settings), out.Close(), in.Close()); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "agent")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	m := &vm{console: filepath.Join(dir, "console"), done: make(chan error, 1), begin: time.Now()}
	cmd := exec.Command(qemu, append([]string{
		"-machine", "q35,hpet=off", "-accel", "tcg", "-cpu", "max", "-m", "256M", "-smp", "1", "-nodefaults", "-no-user-config", "-no-reboot",
		"-display", "none", "-kernel", k.Image, "-initrd", initrd,
		"-append", "console=ttyS0 loglevel=4 panic=-1 tsc=reliable no_timer_check mitigations=off",
		"-serial", "file:" + m.console, "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,path=" + socket, "-device", "virtserialport,chardev=agent,name=" + agent.PortName,
	}, args...)...)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		err := cmd.Wait()
		if said.Len() > 0 {
			err = fmt.Errorf("%v: %s", err, said.String())
		}
		m.done <- err
		close(m.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-m.done
		if t.Failed() {
			b, _ := os.ReadFile(m.console)
			t.Logf("console:\n%s", b[max(0, len(b)-4000):])
		}
	})
	_ = listener.SetDeadline(time.Now().Add(10 * time.Second))
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	if m.c, err = agent.Dial(ctx, conn); err != nil {
		t.Fatal(err)
	}
	t.Logf("the agent answered %.1f s after the start, %d ms after the kernel's", time.Since(m.begin).Seconds(), m.c.Hello.BootMs)
	if m.c.Hello.Failure != "" {
		t.Errorf("set-up: %s", m.c.Hello.Failure)
	}
	return m
}

// run runs a shell script in the machine.
func (m *vm) run(t *testing.T, script, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	code, err := m.c.Exec(ctx, agent.ExecOptions{Process: agent.Process{Argv: []string{"sh", "-c", script}}, Stdout: &out, Stderr: &errs})
	if code != 0 || err != nil || strings.TrimSpace(out.String()) != want {
		t.Errorf("%s: %d, %v, %q, %q; expected %q", script, code, err, out.String(), errs.String(), want)
	}
}

// end shuts the machine down and waits for its end.
func (m *vm) end(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := m.c.Shutdown(ctx, agent.Shutdown{Mode: agent.PowerOff, GraceMs: 2000}); err != nil {
		t.Error(err)
	}
	select {
	case err := <-m.done:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("the machine does not end")
	}
}

func TestBootDefault(t *testing.T) {
	k, base := guestFiles(t)
	m := boot(t, k, base, &agent.Config{Env: []string{"WHO=config"}, Network: &agent.Network{Hostname: "box"},
		Main: &agent.Process{Argv: []string{"sh", "-c", "echo main is running; exit 6"}}})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m.run(t, "echo $WHO; hostname; uname -r", "config\nbox\n"+k.Version)
	var out bytes.Buffer
	code, err := m.c.Exec(ctx, agent.ExecOptions{Process: agent.Process{Argv: []string{"sh", "-c", "md5sum; exit 17"}},
		Stdin: io.LimitReader(zeros{}, 1<<20), Stdout: &out})
	if code != 17 || err != nil || !strings.HasPrefix(out.String(), "b6d81b360a5672d80c27430f39153e2c") {
		t.Errorf("%d, %v, %q", code, err, out.String())
	}
	// A terminal, and its size.
	resize := make(chan agent.Size, 1)
	resize <- agent.Size{Rows: 33, Columns: 99}
	out.Reset()
	code, err = m.c.Exec(ctx, agent.ExecOptions{TTY: true, Size: agent.Size{Rows: 24, Columns: 80}, Resize: resize, Stdout: &out,
		Process: agent.Process{Argv: []string{"sh", "-c", `until [ "$(stty size)" = "33 99" ]; do usleep 20000; done; tty; exit 3`}}})
	if code != 3 || err != nil || out.String() != "/dev/pts/0\r\n" {
		t.Errorf("terminal: %d, %v, %q", code, err, out.String())
	}
	if code, err := m.c.WaitMain(ctx); code != 6 || err != nil {
		t.Errorf("main: %d, %v", code, err)
	}
	if err := m.c.SetTime(ctx, time.Unix(2e9, 0)); err != nil {
		t.Error(err)
	}
	m.run(t, "date -u +%Y", "2033")
	m.run(t, "(sleep 0.1 &) ; sleep 0.3; ps -o stat | grep -c Z || true", "0")
	s, err := m.c.Status(ctx)
	if err != nil || s.Hostname != "box" || s.MemoryKiB == 0 || s.Main == nil || s.Main.Code != 6 || s.OrphansReaped == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	m.end(t)
	if b, _ := os.ReadFile(m.console); !bytes.Contains(b, []byte("main is running")) {
		t.Error("the main program's output is not on the console")
	}
}

// zeros reads as zero bytes without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// The root is a disk, and the main program's end is the machine's.
func TestBootDisk(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("no mke2fs: the root disk is not made")
	}
	k, base := guestFiles(t)
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "run", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	shell, err := busybox.Fetch(context.Background(), filepath.Join("..", "..", "..", "..", "build", "busybox"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(shell)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755), os.Symlink("busybox", filepath.Join(root, "bin/sh")),
		os.WriteFile(filepath.Join(root, "etc/mark"), []byte("disk\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", root, disk, "16M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	config := &agent.Config{Root: &agent.Disk{Serial: "rootdisk"}, OnExit: agent.PowerOff,
		Network: &agent.Network{Hostname: "disk", DNS: []string{"192.0.2.53"}},
		Main:    &agent.Process{Argv: []string{"sh", "-c", "until [ -e /run/go ]; do busybox usleep 20000; done; exit 21"}}}
	m := boot(t, k, base, config, "-drive", "if=none,id=a,format=raw,file="+other, "-device", "virtio-blk-pci,drive=a",
		"-drive", "if=none,id=b,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=b,serial=rootdisk")
	m.run(t, "read x </etc/mark; read y </etc/resolv.conf; echo $x, $y; echo kept >/etc/new", "disk, nameserver 192.0.2.53")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	type result struct {
		code int
		err  error
	}
	waited := make(chan result, 1)
	go func() { code, err := m.c.WaitMain(ctx); waited <- result{code, err} }()
	m.run(t, ": >/run/go", "")
	if r := <-waited; r.code != 21 || r.err != nil {
		t.Errorf("%+v", r)
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		t.Fatal("the machine does not end with its main program")
	}
	// It was unmounted, and what was written is there.
	if out, err := exec.Command("debugfs", "-R", "cat /etc/new", disk).Output(); err != nil || string(out) != "kept\n" {
		t.Errorf("%v, %q", err, out)
	}
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil || bytes.Contains(out, []byte("recovering journal")) {
		t.Errorf("%v: %s", err, out)
	}
}
