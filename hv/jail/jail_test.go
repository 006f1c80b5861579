package jail

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/vfs"
)

// caseEnv makes the test binary a jailed child that performs one case.
const caseEnv = "GRAIL_JAIL_CASE"

func TestMain(m *testing.M) {
	if name := os.Getenv(caseEnv); name != "" {
		os.Exit(child(name))
	}
	os.Exit(m.Run())
}

// finding is what a child reports from inside the jail.
type finding struct {
	Result  Result
	Error   string
	Threads int
	Errnos  map[string]int
	Limits  map[string]uint64
	UID     int
	Status  string // of every thread, read through a descriptor of /proc/self
}

func try(f func() error) int {
	err := f()
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return int(e)
	}
	return -1
}

// child runs one case. Descriptor 3 takes the finding; 4, if open, is the host's /proc as it was before.
func child(name string) int {
	out := os.NewFile(3, "finding")
	proc, procErr := unix.Open(fmt.Sprintf("/proc/%s", selfPID()), unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	// Threads that exist before the jail must be in it as well.
	const extra = 4
	var started, stop = make(chan bool), make(chan bool)
	for range extra {
		go func() {
			runtime.LockOSThread()
			started <- true
			<-stop
			runtime.UnlockOSThread()
		}()
		<-started
	}
	cfg := Config{Syscalls: vfs.HostSyscalls, Ioctls: append(KVMIoctls, vfs.HostIoctls...), FileBytes: 1 << 30}
	cfg.Shared = strings.HasPrefix(name, "shared")
	if name == "inspect" || name == "shared-inspect" {
		cfg.Syscalls = append([]string{"openat", "getdents64", "newfstatat", "prlimit64", "getuid"}, cfg.Syscalls...)
	}
	if name == "process-engine" {
		cfg.Numbers = []uint32{unix.SYS_PTRACE, unix.SYS_WAIT4, unix.SYS_TGKILL, unix.SYS_KILL, unix.SYS_IOCTL, unix.SYS_PROCESS_VM_READV}
	}
	r, err := Enter(cfg)
	f := finding{Result: r, Errnos: map[string]int{}, Limits: map[string]uint64{}}
	if err != nil {
		f.Error = err.Error()
		json.NewEncoder(out).Encode(f)
		return 1
	}
	mem := make([]byte, 8)
	switch strings.TrimPrefix(name, "shared-") {
	case "inspect":
		f.UID = os.Getuid()
		for _, l := range []limit{{"files", unix.RLIMIT_NOFILE, 0}, {"core", unix.RLIMIT_CORE, 0}, {"size", unix.RLIMIT_FSIZE, 0}} {
			var v unix.Rlimit
			unix.Prlimit(0, l.resource, nil, &v)
			f.Limits[l.name] = v.Max
		}
		for _, p := range []string{"/etc/passwd", "/proc/self/status", "/dev/null", "/tmp"} {
			f.Errnos[p] = try(func() error { _, err := unix.Open(p, unix.O_RDONLY, 0); return err })
		}
		f.Errnos["create"] = try(func() error { _, err := unix.Open("/x", unix.O_CREAT|unix.O_WRONLY, 0o600); return err })
		if root, err := os.ReadDir("/"); err != nil || len(root) != 0 {
			f.Errnos["root"] = 1
		}
		if procErr == nil {
			f.Status, f.Threads = threadStatus(proc)
		}
	case "refused":
		f.Errnos["open"] = try(func() error { _, err := unix.Open("/", unix.O_RDONLY, 0); return err })
		f.Errnos["socket"] = try(func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); return err })
		f.Errnos["unix"] = try(func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err })
		f.Errnos["stat"] = try(func() error { var st unix.Stat_t; return unix.Stat("/", &st) })
	case "work": // everything that a running VM does
		var p [2]int
		f.Errnos["pipe"] = try(func() error { return unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK) })
		unix.Write(p[1], mem)
		f.Errnos["read"] = try(func() error { _, err := unix.Read(p[0], mem); return err })
		f.Errnos["ioctl"] = try(func() error { _, err := unix.IoctlGetInt(p[0], unix.TIOCINQ); return err })
		f.Errnos["tty"] = try(func() error { _, err := unix.IoctlGetTermios(p[0], unix.TCGETS); return err })
		f.Errnos["mmap"] = try(func() error {
			b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err == nil {
				err = unix.Mprotect(b, unix.PROT_READ)
			}
			return err
		})
		f.Errnos["poll"] = try(func() error {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(p[0]), Events: unix.POLLIN}}, 1)
			return err
		})
		f.Errnos["tgkill"] = try(func() error { return unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGURG) })
		done := make(chan bool)
		for range 8 { // new threads, garbage, timers, formatted local time
			go func() {
				runtime.LockOSThread()
				time.Sleep(time.Millisecond)
				done <- len(time.Now().Local().Format(time.RFC1123Z)) > 0
			}()
		}
		for range 8 {
			<-done
		}
		var hog [][]byte
		for range 64 {
			hog = append(hog, make([]byte, 1<<20))
		}
		runtime.KeepAlive(hog)
		runtime.GC()
	case "socketpair-thread": // another thread than the one that entered is filtered too
		res := make(chan int)
		go func() {
			runtime.LockOSThread()
			res <- try(func() error { _, err := unix.Open("/", unix.O_RDONLY, 0); return err })
		}()
		f.Errnos["open"] = <-res
	case "execve":
		syscall.Exec("/proc/self/exe", []string{"x"}, nil)
	case "ptrace":
		unix.PtraceAttach(os.Getppid())
	case "fork":
		syscall.RawSyscall(unix.SYS_FORK, 0, 0, 0)
	case "clone-process":
		syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	case "mmap-exec":
		unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	case "mprotect-exec":
		b, _ := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
		unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC)
	case "ioctl-other":
		unix.IoctlSetInt(0, unix.TIOCSTI, 0)
	case "kvm-create":
		unix.IoctlSetInt(0, 0xae01, 0)
	case "kill-other":
		unix.Kill(1, 0)
	case "tgkill-other":
		unix.Tgkill(unix.Getpid()+1, 1, 0)
	case "mount":
		unix.Mount("x", "/", "tmpfs", 0, "")
	case "setuid":
		syscall.RawSyscall(unix.SYS_SETUID, 0, 0, 0)
	case "unshare":
		unix.Unshare(unix.CLONE_NEWUSER)
	case "int80": // the 32-bit interface has another list of numbers: none is allowed
		int80()
	case "process-engine":
		f.Errnos["ptrace"] = try(func() error { return unix.PtraceAttach(1 << 29) })
		f.Errnos["kill"] = try(func() error { return unix.Kill(1<<29, 0) })
		f.Errnos["tgkill"] = try(func() error { return unix.Tgkill(1<<29, 1<<29, 0) })
	default:
		f.Error = "no such case"
	}
	if err := json.NewEncoder(out).Encode(f); err != nil {
		return 2
	}
	return 0
}

func selfPID() string {
	s, _ := os.Readlink("/proc/self")
	return s
}

// threadStatus reads what the host says about each thread, through a /proc directory opened before the jail.
func threadStatus(proc int) (string, int) {
	task, err := unix.Openat(proc, "task", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err.Error(), 0
	}
	names, err := os.NewFile(uintptr(task), "task").Readdirnames(-1)
	if err != nil {
		return err.Error(), 0
	}
	lines := map[string]int{}
	for _, n := range names {
		fd, err := unix.Openat(proc, "task/"+n+"/status", unix.O_RDONLY, 0)
		if err != nil {
			return err.Error(), 0
		}
		buf := make([]byte, 8192)
		k, _ := unix.Read(fd, buf)
		unix.Close(fd)
		for _, l := range strings.Split(string(buf[:k]), "\n") {
			for _, key := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs", "Seccomp:", "Uid", "Gid"} {
				if strings.HasPrefix(l, key) {
					lines[strings.Join(strings.Fields(l), " ")]++
				}
			}
		}
	}
	var out []string
	for l, n := range lines {
		out = append(out, fmt.Sprintf("%s x%d", l, n))
	}
	sort.Strings(out)
	return strings.Join(out, "\n"), len(names)
}

type user int

const (
	asRoot user = iota
	asOther
)

const otherUID = 12345

// run performs a case in new namespaces and returns what the child found and how it ended.
func run(t testing.TB, name string, who user) (finding, syscall.WaitStatus) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	attr := &syscall.SysProcAttr{Setsid: true}
	const spaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if !strings.HasPrefix(name, "shared") {
		attr.Cloneflags = spaces
	}
	uid := os.Getuid()
	switch {
	case who == asOther && uid == 0: // as if an ordinary user had started it
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: otherUID, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: otherUID, Size: 1}}
		attr.Credential = &syscall.Credential{NoSetGroups: true}
	case uid != 0:
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = []string{caseEnv + "=" + name}
	cmd.SysProcAttr = attr
	cmd.ExtraFiles = []*os.File{w}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Start()
	w.Close()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) {
		t.Skipf("the host allows no new namespaces here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	var f finding
	_ = json.NewDecoder(r).Decode(&f)
	_ = cmd.Wait()
	if f.Error == ErrCgo.Error() {
		t.Skip(f.Error)
	}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if stderr.Len() > 0 && !ws.Signaled() {
		t.Logf("%s", stderr.String())
	}
	return f, ws
}

func users(t *testing.T, f func(t *testing.T, who user)) {
	t.Run("root", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root")
		}
		f(t, asRoot)
	})
	t.Run("user", func(t *testing.T) { f(t, asOther) })
}

func TestInside(t *testing.T) {
	users(t, func(t *testing.T, who user) {
		f, ws := run(t, "inspect", who)
		if f.Error != "" || ws.ExitStatus() != 0 {
			t.Fatalf("error %q, ended %v", f.Error, ws)
		}
		if len(f.Result.Missing) != 0 {
			t.Errorf("missing: %v", f.Result.Missing)
		}
		t.Logf("took %v", f.Result.Took)
		for p, e := range f.Errnos {
			want := int(unix.ENOENT)
			if p == "create" {
				want = int(unix.EROFS)
			}
			if e != want {
				t.Errorf("%s: errno %d, want %d", p, e, want)
			}
		}
		if f.Limits["core"] != 0 || f.Limits["size"] != 1<<30 || f.Limits["files"] > DefaultFiles {
			t.Errorf("limits: %v", f.Limits)
		}
		if f.Threads < 5 {
			t.Fatalf("%d threads: %s", f.Threads, f.Status)
		}
		for _, key := range []string{"CapInh: 0000000000000000", "CapPrm: 0000000000000000", "CapEff: 0000000000000000",
			"CapAmb: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"} {
			if !strings.Contains(f.Status, fmt.Sprintf("%s x%d", key, f.Threads)) {
				t.Errorf("not every one of %d threads has %q:\n%s", f.Threads, key, f.Status)
			}
		}
		want := fmt.Sprintf("Uid: %d %[1]d %[1]d %[1]d", Nobody)
		if who == asOther { // in its own user namespace, which is what it reads here
			want = "Uid: 0 0 0 0"
		}
		if os.Getuid() == 0 && !strings.Contains(f.Status, want) {
			t.Errorf("status lacks %q:\n%s", want, f.Status)
		}
	})
}

func TestRefused(t *testing.T) {
	users(t, func(t *testing.T, who user) {
		f, ws := run(t, "refused", who)
		if f.Error != "" || ws.ExitStatus() != 0 || len(f.Errnos) != 4 {
			t.Fatalf("error %q, ended %v, %v", f.Error, ws, f.Errnos)
		}
		for what, e := range f.Errnos {
			if e != int(unix.EPERM) {
				t.Errorf("%s: errno %d, want EPERM", what, e)
			}
		}
	})
}

func TestWork(t *testing.T) {
	users(t, func(t *testing.T, who user) {
		f, ws := run(t, "work", who)
		if f.Error != "" || ws.ExitStatus() != 0 || ws.Signaled() {
			t.Fatalf("error %q, ended %v (signal %v)", f.Error, ws, ws.Signal())
		}
		for what, e := range f.Errnos {
			want := 0
			if what == "tty" {
				want = int(unix.ENOTTY)
			}
			if e != want {
				t.Errorf("%s: errno %d", what, e)
			}
		}
	})
}

func TestKilled(t *testing.T) {
	for _, name := range []string{"execve", "ptrace", "fork", "clone-process", "mmap-exec", "mprotect-exec", "ioctl-other", "kvm-create",
		"kill-other", "tgkill-other", "mount", "setuid", "unshare", "int80"} {
		t.Run(name, func(t *testing.T) {
			f, ws := run(t, name, asRoot)
			if f.Error != "" {
				t.Fatal(f.Error)
			}
			if !ws.Signaled() || ws.Signal() != unix.SIGSYS {
				t.Errorf("ended with %#x (exit %d, signal %v), want SIGSYS", uint32(ws), ws.ExitStatus(), ws.Signal())
			}
		})
	}
}

func TestOtherThread(t *testing.T) {
	f, _ := run(t, "socketpair-thread", asRoot)
	if f.Errnos["open"] != int(unix.EPERM) {
		t.Errorf("open on another thread: errno %d", f.Errnos["open"])
	}
}

func TestProcessEngine(t *testing.T) {
	f, ws := run(t, "process-engine", asRoot)
	if ws.Signaled() || f.Error != "" {
		t.Fatalf("ended %v, %s", ws, f.Error)
	}
	for what, e := range f.Errnos {
		if e != int(unix.ESRCH) {
			t.Errorf("%s: errno %d, want ESRCH", what, e)
		}
	}
}

// In the starter's namespaces the root stays, but nothing can be opened.
func TestShared(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	f, ws := run(t, "shared-refused", asRoot)
	if f.Error != "" || ws.Signaled() || len(f.Result.Missing) != 1 {
		t.Fatalf("error %q, ended %v, missing %v", f.Error, ws, f.Result.Missing)
	}
	for what, e := range f.Errnos {
		if e != int(unix.EPERM) {
			t.Errorf("%s: errno %d, want EPERM", what, e)
		}
	}
}

// A process in the host's mount namespace must not empty the host's root by mistake.
func TestNotAlone(t *testing.T) {
	if err := emptyRoot(); !errors.Is(err, ErrNotAlone) {
		t.Errorf("emptyRoot in the test process: %v", err)
	}
	if _, err := os.Stat(filepath.Join("/", "proc")); err != nil {
		t.Error(err)
	}
}

func BenchmarkEnter(b *testing.B) {
	var took []time.Duration
	for b.Loop() {
		f, _ := run(b, "refused", asRoot)
		if f.Error != "" {
			b.Fatal(f.Error)
		}
		took = append(took, f.Result.Took)
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/enter")
}
