package qemu

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernelDir holds an unpacked kernel package, as images/nested/boot leaves it.
func kernelDir() string {
	if dir := os.Getenv("GRAIL_TEST_KERNEL"); dir != "" {
		return dir
	}
	return "../../build/nested/kernel/amd64"
}

// needQEMU returns the path of a kernel image and its modules' directory, or skips.
func needQEMU(t *testing.T) (image, modules string) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: -short")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED: qemu-system-x86_64 is not installed (Debian package qemu-system-x86)")
	}
	if hostArch != AMD64 {
		t.Skip("SKIPPED: the guest's init is this program, which is not one of amd64")
	}
	if !static(t) {
		t.Skip("SKIPPED: the guest's init is this program, which is built with cgo; build it with CGO_ENABLED=0")
	}
	images, _ := filepath.Glob(filepath.Join(kernelDir(), "boot", "vmlinuz-*"))
	if len(images) != 1 {
		t.Skipf("SKIPPED: no kernel in %s; make test-nested fetches one, GRAIL_TEST_KERNEL names another place", kernelDir())
	}
	return images[0], filepath.Join(kernelDir(), "lib", "modules")
}

// static reports whether this program runs without a loader.
func static(t *testing.T) bool {
	t.Helper()
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// initramfs writes an initial file system: this program as init, and the modules.
func initramfs(t *testing.T, modules string) string {
	t.Helper()
	var out bytes.Buffer
	inode := 0
	add := func(name string, mode int, data []byte, major, minor int) {
		inode++
		fmt.Fprintf(&out, "070701")
		for _, v := range []int{inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0} {
			fmt.Fprintf(&out, "%08X", v)
		}
		out.WriteString(name + "\x00")
		out.Write(make([]byte, -out.Len()&3))
		out.Write(data)
		out.Write(make([]byte, -out.Len()&3))
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	add("dev", 0o40755, nil, 0, 0)
	add("dev/console", 0o20600, nil, 5, 1)
	add("grail-test-guest", 0o100644, nil, 0, 0)
	add("init", 0o100755, program, 0, 0)
	add("modules", 0o40755, nil, 0, 0)
	found := map[string]bool{}
	_ = filepath.WalkDir(modules, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		for _, m := range guestModules {
			if d.Name() == m+".ko" && !found[m] {
				found[m] = true
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				add("modules/"+d.Name(), 0o100644, b, 0, 0)
			}
		}
		return nil
	})
	if len(found) != len(guestModules) {
		t.Fatalf("kernel modules found: %v, wanted %v", found, guestModules)
	}
	add("TRAILER!!!", 0, nil, 0, 0)
	path := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// storage serves a file as a vhost-user-blk disk, by QEMU's own storage daemon.
type storage struct {
	t      *testing.T
	file   string
	socket string
	cmd    *exec.Cmd
}

func newStorage(t *testing.T, content string) *storage {
	t.Helper()
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		t.Skip("SKIPPED: qemu-storage-daemon is not installed (Debian package qemu-system-common or qemu-utils)")
	}
	dir := shortDir(t)
	s := &storage{t: t, file: filepath.Join(dir, "disk"), socket: filepath.Join(dir, "blk.sock")}
	if err := os.WriteFile(s.file, append([]byte(content), make([]byte, 1<<20-len(content))...), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *storage) start() {
	s.t.Helper()
	_ = os.Remove(s.socket)
	s.cmd = exec.Command("qemu-storage-daemon", "--blockdev", "driver=file,node-name=f,filename="+s.file,
		"--export", "type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path="+s.socket)
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	until(s.t, 5*time.Second, "the storage daemon's socket", func() bool {
		_, err := os.Stat(s.socket)
		return err == nil
	})
}

func (s *storage) stop() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// shortDir returns a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gq")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// until polls for a condition that has no event.
func until(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", limit, what)
		}
		<-tick.C
	}
}

// guest is a machine that runs guestMain, and the test's end of its agent's channel.
type guest struct {
	*VM
	t       *testing.T
	conn    net.Conn
	in      *bufio.Reader
	agent   string // path of the agent's listening socket
	console *os.File
	begin   time.Time
}

func boot(t *testing.T, change func(*Config)) *guest {
	t.Helper()
	image, modules := needQEMU(t)
	dir := shortDir(t)
	g := &guest{t: t, agent: filepath.Join(dir, "agent.sock")}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.agent, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	lf, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer lf.Close()
	if g.console, err = os.OpenFile(filepath.Join(dir, "console"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.console.Close() })
	c := Config{
		Name: "test", Dir: filepath.Join(dir, "vm"), Accel: TCG, Kernel: image, Initrds: []string{initramfs(t, modules)},
		Cmdline: "console=ttyS0 quiet panic=-1 reboot=t", Memory: 256 << 20,
		Channels: []Channel{{"org.grail.agent", Stream{Listen: lf}}},
		Console:  Console{SerialConsole, Stream{Log: g.console}},
	}
	if change != nil {
		change(&c)
	}
	g.begin = time.Now()
	g.VM, err = Start(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s: QEMU answers after %v", g.Machine(), g.Accel(), time.Since(g.begin).Round(time.Millisecond))
	t.Cleanup(func() {
		_ = g.Kill()
		select {
		case <-g.Done():
		case <-g.detached:
		}
		if t.Failed() {
			t.Logf("end: %+v", g.VM.end)
			b, _ := os.ReadFile(g.console.Name())
			t.Logf("console: %s", b[max(len(b)-2000, 0):])
			for _, e := range g.VM.Log() {
				t.Log(e.Time.Format("05.000"), e.From, e.Text)
			}
		}
	})
	if g.conn, err = net.Dial("unix", g.agent); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.conn.Close() })
	g.in = bufio.NewReader(g.conn)
	return g
}

// ready waits until the guest's init runs.
func (g *guest) ready() {
	g.t.Helper()
	if s := g.line(); s != "ready" {
		g.t.Fatalf("the guest says %q, want ready", s)
	}
	g.t.Logf("%s: the guest answers after %v", g.Machine(), time.Since(g.begin).Round(time.Millisecond))
}

func (g *guest) line() string {
	g.t.Helper()
	_ = g.conn.SetDeadline(time.Now().Add(20 * time.Second))
	s, err := g.in.ReadString('\n')
	if err != nil {
		g.t.Fatalf("read from the guest: %v", err)
	}
	return strings.TrimSpace(s)
}

func (g *guest) ask(command string) string {
	g.t.Helper()
	g.tell(command)
	return g.line()
}

func (g *guest) tell(command string) {
	g.t.Helper()
	if _, err := fmt.Fprintln(g.conn, command); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) end() End {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	e, err := g.Wait(ctx)
	if err != nil {
		g.t.Fatalf("wait for the end: %v", err)
	}
	return e
}

// TestRealPlug boots a guest, plugs a disk in, has its back end die and come back, unplugs it, adopts the machine, and has
// the guest power off.
func TestRealPlug(t *testing.T) {
	s := newStorage(t, "first disk")
	umask := unix.Umask(0o077) // as graild's is: QEMU must reach its sockets all the same
	t.Cleanup(func() { unix.Umask(umask) })
	g := boot(t, func(c *Config) { c.Paused = true })
	ctx := context.Background()
	if st, err := g.Status(ctx); err != nil || st.State != "prelaunch" || st.Running {
		t.Fatalf("status %+v, %v; want prelaunch", st, err)
	}
	checkJail(t, g.VM)
	if err := g.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	g.ready()
	if err := g.AddDisk(ctx, Disk{ID: "data", Socket: s.socket}); err != nil {
		t.Fatal(err)
	}
	if err := g.AddDisk(ctx, Disk{ID: "data", Socket: s.socket}); !errors.Is(err, ErrExists) {
		t.Errorf("the same disk again: %v, want ErrExists", err)
	}
	until(t, 10*time.Second, "the disk in the guest", func() bool { return strings.Contains(g.ask("list /dev"), "vda") })
	if got := g.ask("read /dev/vda"); !strings.HasPrefix(got, `"first disk`) {
		t.Errorf("the guest reads %s", got)
	}

	nic := NIC{ID: "eth0", Socket: newDeadNet(t, 2), MAC: "52:54:00:12:34:56", Queues: 2}
	if err := g.AddNIC(ctx, nic); err != nil {
		t.Fatal(err)
	}
	until(t, 10*time.Second, "the card in the guest", func() bool { return strings.Contains(g.ask("list /sys/class/net"), "eth0") })
	if got := g.ask("read /sys/class/net/eth0/address"); !strings.HasPrefix(got, `"52:54:00:12:34:`) {
		t.Errorf("the card's address in the guest is %s", got)
	}

	// Another back end at another socket of the same name: after a second or so QEMU has found it.
	s.stop()
	if err := os.WriteFile(s.file, append([]byte("second disk"), make([]byte, 1<<20-11)...), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	g.Relink()
	if got := g.ask("read /dev/vda"); !strings.HasPrefix(got, `"second disk`) {
		t.Errorf("after its back end died the guest reads %s", got)
	}

	if err := g.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if st, err := g.Status(ctx); err != nil || st.State != "paused" {
		t.Errorf("status %+v, %v; want paused", st, err)
	}
	// While it is paused the guest releases nothing.
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	if err := g.RemoveDisk(short, "data"); !errors.Is(err, ErrBusy) {
		t.Errorf("unplug from a paused guest: %v, want ErrBusy", err)
	}
	cancel()

	dir := g.dir
	g.Detach()
	if _, err := g.Wait(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("wait after Detach: %v, want ErrClosed", err)
	}
	old := g.VM
	v, err := Adopt(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	g.VM = v
	if v.PID() != old.PID() || len(v.Disks()) != 1 || v.Disks()[0].ID != "data" || len(v.NICs()) != 1 || v.NICs()[0] != nic {
		t.Errorf("adopted process %d with disks %v, want %d with data", v.PID(), v.Disks(), old.PID())
	}
	short, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
	if _, err := Adopt(short, dir); !errors.Is(err, ErrInUse) {
		t.Errorf("a second owner: %v, want ErrInUse", err)
	}
	cancel()
	if err := g.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	// The card goes in Linux's own time, the disk at once, because the guest is told.
	begin := time.Now()
	card := make(chan error, 1)
	go func() { card <- g.RemoveNIC(ctx, "eth0") }()
	disk := make(chan error, 1)
	go func() { disk <- g.RemoveDisk(ctx, "data") }()
	if got := g.ask("slot-off 1"); got != "done" {
		t.Errorf("the guest cannot switch a slot off: %s", got)
	}
	if err := <-disk; err != nil {
		t.Fatal(err)
	}
	t.Logf("the disk is unplugged after %v", time.Since(begin).Round(time.Millisecond))
	if err := <-card; err != nil {
		t.Fatal(err)
	}
	t.Logf("the network card is unplugged after %v", time.Since(begin).Round(time.Millisecond))
	if len(g.NICs()) != 0 || len(g.Disks()) != 0 {
		t.Errorf("still plugged: %v %v", g.NICs(), g.Disks())
	}
	if got := g.ask("list /dev"); strings.Contains(got, "vda") {
		t.Errorf("the guest still has the disk")
	}
	if err := g.RemoveDisk(ctx, "data"); !errors.Is(err, ErrNoDevice) {
		t.Errorf("unplug again: %v, want ErrNoDevice", err)
	}
	g.tell("poweroff")
	if e := g.end(); e.Cause != Shutdown {
		t.Errorf("end %+v, want shutdown", e)
	}
	if _, err := Adopt(ctx, dir); !errors.Is(err, ErrGone) {
		t.Errorf("adopt after the end: %v, want ErrGone", err)
	}
}

// checkJail looks at QEMU from outside.
func checkJail(t *testing.T, v *VM) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.PID()))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"NoNewPrivs": "1", "Seccomp": "2"}
	if os.Geteuid() == 0 {
		for _, k := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			want[k] = "0000000000000000"
		}
		want["Uid"] = "65534\t65534\t65534\t65534"
	}
	for line := range strings.Lines(string(b)) {
		k, val, _ := strings.Cut(line, ":")
		if w, ok := want[k]; ok && strings.TrimSpace(val) != w {
			t.Errorf("QEMU's %s is %q, want %q", k, strings.TrimSpace(val), w)
		}
	}
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid"} {
		own, _ := os.Readlink("/proc/self/ns/" + ns)
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", v.PID(), ns))
		if err != nil || own == its {
			t.Errorf("QEMU's namespace %s is %s, ours %s (%v)", ns, its, own, err)
		}
	}
	root := fmt.Sprintf("/proc/%d/root", v.PID())
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 1 || entries[0].Name() != "run" {
		t.Errorf("QEMU's root has %v (%v), want run alone", entries, err)
	}
	if err := os.WriteFile(root+"/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to QEMU's root: %v, want EROFS", err)
	}
}

// TestRealEnds has guests end in different ways.
func TestRealEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*guest)
		want Cause
	}{
		{"panic", func(g *guest) { g.ready(); g.tell("panic") }, Panic},
		{"reboot", func(g *guest) {
			g.ready()
			if got := g.ask("read /dev/vda"); !strings.HasPrefix(got, `"root disk`) {
				g.t.Errorf("the guest reads %s from its first disk", got)
			}
			g.tell("reboot")
		}, Reset},
		{"quit", func(g *guest) {
			if err := g.Quit(context.Background()); err != nil {
				t.Error(err)
			}
		}, Quit},
		{"kill", func(g *guest) { _ = unix.Kill(g.PID(), unix.SIGKILL) }, Killed},
		{"terminate", func(g *guest) { _ = unix.Kill(g.PID(), unix.SIGTERM) }, Killed},
		{"crash", func(g *guest) {
			// A port whose access ends QEMU, accessed by the monitor.
			_ = g.Run(context.Background(), "human-monitor-command", map[string]any{"command-line": "o /b 0xf4 1"}, nil)
		}, Crash},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := boot(t, func(cfg *Config) {
				if c.want == Panic {
					cfg.CPUs = 2
				}
				if c.want == Reset {
					cfg.Disks = []Disk{{ID: "root", Socket: newStorage(t, "root disk").socket}}
				}
				if c.want == Crash {
					cfg.Extra = []string{"-device", "isa-debug-exit,iobase=0xf4,iosize=1"}
				}
			})
			c.end(g)
			if e := g.end(); e.Cause != c.want {
				t.Errorf("end %+v, want %s", e, c.want)
			} else {
				t.Log(e)
			}
			if _, err := os.Stat(filepath.Join(g.dir, qmpSocket)); err == nil {
				t.Error("the monitor's socket is still there")
			}
		})
	}
}

// TestRealDoesNotStart has QEMU refuse.
func TestRealDoesNotStart(t *testing.T) {
	image, _ := needQEMU(t)
	for _, c := range []struct {
		name string
		set  func(*Config)
		want string
	}{
		{"bad kernel", func(c *Config) { c.Kernel = "guest_test.go" }, "kernel"},
		{"bad option", func(c *Config) { c.Extra = []string{"-no-such-option"} }, "no-such-option"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := Config{Name: "bad", Dir: filepath.Join(shortDir(t), "vm"), Accel: TCG, Kernel: image, Memory: MinMemory}
			c.set(&cfg)
			v, err := Start(context.Background(), cfg)
			if err == nil {
				_ = v.Kill()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: want a word about %s", err, c.want)
			}
			t.Log(err)
		})
	}
}

// TestRealARM64 has QEMU accept the machine for arm64; there is no kernel for it here to run.
func TestRealARM64(t *testing.T) {
	needQEMU(t)
	path, err := exec.LookPath("qemu-system-aarch64")
	if err != nil {
		t.Skip("SKIPPED: qemu-system-aarch64 is not installed (Debian package qemu-system-arm)")
	}
	s := newStorage(t, "disk")
	dir := shortDir(t)
	kernel := filepath.Join(dir, "Image")
	if err := os.WriteFile(kernel, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := Start(context.Background(), Config{Name: "arm", Dir: filepath.Join(dir, "vm"), Arch: ARM64, Program: path, Kernel: kernel,
		Memory: 64 << 20, CPUs: 2, Paused: true, Console: Console{Kind: VirtioConsole}, Disks: []Disk{{ID: "root", Socket: s.socket}},
		NICs: []NIC{{ID: "eth0", Socket: newDeadNet(t, 1), MAC: "52:54:00:12:34:56"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Kill(); <-v.Done() }()
	if v.Machine() != Virt || v.Accel() != TCG {
		t.Errorf("machine %s %s, want virt tcg", v.Machine(), v.Accel())
	}
	if st, err := v.Status(context.Background()); err != nil || st.State != "prelaunch" {
		t.Errorf("status %+v, %v", st, err)
	}
	checkJail(t, v)
}

// TestProbe compares Probe with what is to be seen.
func TestProbe(t *testing.T) {
	needQEMU(t)
	v, err := Probe(context.Background(), AMD64, "")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(strings.SplitN(v.Version, ".", 2)[0]); err != nil || n < 5 || v.Why == "" {
		t.Errorf("%+v", v)
	}
	t.Logf("%+v", v)
	if _, err := Probe(context.Background(), AMD64, "/nonexistent/qemu"); !errors.Is(err, ErrNoQEMU) {
		t.Errorf("no program: %v, want ErrNoQEMU", err)
	}
}
