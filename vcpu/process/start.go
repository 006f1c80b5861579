//go:build linux && amd64

package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTimeout bounds each step of a start; a jail takes a few milliseconds.
const startTimeout = 10 * time.Second

// ErrNoHook reports that the program did not call ChildMain first thing in main.
var ErrNoHook = errors.New("process: ChildMain was not called at the start of this program")

// Start runs cfg.Program in a jail and returns when the program has been executed. It must be called before the
// supervisor jails itself; afterwards the guest needs no more than SupervisorSyscalls. The guest dies with the
// supervisor. Errors: ErrNoHook, a bad configuration, an unsuitable program, or what the host does
// not permit, in words (see Probe).
func Start(cfg Config) (*Guest, error) {
	if !hooked.Load() {
		return nil, ErrNoHook
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	if _, err := filter(cfg.Native, 1); err != nil {
		return nil, err
	}
	if err := checkELF(cfg.Program); err != nil {
		return nil, err
	}
	program, err := executable(cfg.Program)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	type result struct {
		g   *Guest
		err error
	}
	started := make(chan result)
	go func() {
		// Never unlocked: the thread that forks is the tracer and the parent whose end kills the guest, and
		// it ends with this goroutine.
		runtime.LockOSThread()
		g, err := spawnAny(cfg, program)
		started <- result{g, err}
		if err == nil {
			g.trace()
		}
	}()
	r := <-started
	return r.g, r.err
}

// mode is one way to confine the guest; they are tried from the strongest.
type mode struct {
	name       string
	userNS     bool
	namespaces bool
	hostUID    int // of the guest
}

const nobody = 65534

// forceMode is the only mode to try, in tests.
var forceMode *mode

func modes(weak bool) []mode {
	uid := os.Geteuid()
	list := []mode{{"a user namespace of its own", true, true, uid}}
	if uid == 0 {
		list = []mode{
			{"a user namespace as nobody", true, true, nobody},
			{"a user namespace as the caller", true, true, uid},
			{"namespaces as nobody, without a user namespace", false, true, nobody},
		}
	}
	if weak && uid == 0 {
		list = append(list, mode{"no namespace, as nobody", false, false, nobody})
	}
	if weak {
		list = append(list, mode{"no namespace", false, false, uid})
	}
	return list
}

// errProgram is an error of the program rather than of the jail: no other mode would help.
var errProgram = errors.New("process: cannot execute the program")

func spawnAny(cfg Config, program *os.File) (*Guest, error) {
	var errs []error
	list := modes(cfg.AllowWeak)
	if forceMode != nil {
		list = []mode{*forceMode}
	}
	for _, m := range list {
		g, err := spawn(cfg, program, m)
		if err == nil {
			g.jail = m.name
			for _, err := range errs {
				g.jail += "; not " + err.Error()
			}
			return g, nil
		}
		if errors.Is(err, errProgram) {
			return nil, err
		}
		errs = append(errs, fmt.Errorf("with %s: %w", m.name, err))
	}
	return nil, fmt.Errorf("process: cannot jail the guest: %w", errors.Join(errs...))
}

// spawn makes one attempt. On failure nothing of it is left.
func spawn(cfg Config, program *os.File, m mode) (_ *Guest, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	parent := os.NewFile(uintptr(pair[0]), "child")
	defer parent.Close()
	pid, pidfd, err := fork(pair[1], program, m)
	unix.Close(pair[1])
	if err != nil {
		return nil, err
	}
	g := &Guest{
		cfg: cfg, pid: pid, pidfd: pidfd, listener: -1, proc: -1, mem: -1, status: -1, maps: -1, pagemap: -1,
		self: 1, weak: !m.namespaces, threads: 1,
		receiving: make(chan struct{}, 1), done: make(chan struct{}),
		calls: map[int]*Call{}, last: map[int]*Call{}, withheld: map[int][]withheld{}, cloning: map[int]struct{}{},
		tids: map[int]struct{}{pid: {}},
	}
	if g.weak {
		g.self, g.sender = uint32(pid), int32(os.Getpid())
	}
	defer func() {
		if err != nil {
			g.kill()
			for {
				if _, e := unix.Wait4(pid, nil, unix.WALL, nil); e != nil && e != unix.EINTR {
					break
				}
			}
			g.reaped = true
			close(g.done)
			g.Close()
		}
	}()
	if g.proc, err = g.hear(parent, hello); err != nil {
		return nil, err
	}
	if m.userNS {
		if err := mapUser(g.proc, m); err != nil {
			return nil, err
		}
	}
	// Not before the child's own first execve is over, which would stop it too.
	g.traced = !cfg.NoTrace && ptraceSeize(pid, spawnOptions) == nil
	spec, err := specFor(&cfg, g, m)
	if err != nil {
		return nil, err
	}
	if err := writeSpec(parent, spec); err != nil {
		return nil, fmt.Errorf("instructing the jail child: %w", err)
	}
	if g.listener, err = g.hear(parent, ready); err != nil {
		return nil, err
	}
	if err := g.execute(parent); err != nil {
		return nil, err
	}
	return g, nil
}

// fork makes the jail child, which is its own session and dies with the calling thread.
func fork(socket int, program *os.File, m mode) (pid, pidfd int, err error) {
	pidfd = -1
	attr := &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL, PidFD: &pidfd}
	if m.namespaces {
		attr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	if m.userNS {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		// Not yet user 0 there, so that execve would take the namespace's capabilities away.
		attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP}
	}
	pid, err = syscall.ForkExec("/proc/self/exe", []string{childName}, &syscall.ProcAttr{
		// No collection, no preemption, and processors enough for two threads that wait in system calls (see enter).
		Env:   []string{"GOGC=off", "GOMAXPROCS=4", "GODEBUG=asyncpreemptoff=1"},
		Files: []uintptr{uintptr(socket), uintptr(socket), uintptr(socket), program.Fd()},
		Sys:   attr,
	})
	if err != nil {
		return 0, -1, fmt.Errorf("forking: %w", err)
	}
	if pidfd < 0 {
		return 0, -1, fmt.Errorf("forking: the kernel gave no pidfd: %w", unix.ENOSYS) // the child ends with the socket
	}
	return pid, pidfd, nil
}

func specFor(cfg *Config, g *Guest, m mode) (*childSpec, error) {
	prog, err := filter(cfg.Native, g.self)
	if err != nil {
		return nil, err
	}
	spec := &childSpec{Filter: prog, Killable: !g.traced, Jailed: m.namespaces, Limits: limitsFor(cfg), KeepIDs: m.hostUID == os.Geteuid()}
	if !m.userNS {
		spec.ID = m.hostUID
	}
	for _, s := range cfg.Argv {
		spec.Argv = append(spec.Argv, []byte(s))
	}
	for _, s := range cfg.Env {
		spec.Env = append(spec.Env, []byte(s))
	}
	return spec, nil
}

// mapUser makes the guest's user, on the host, user 0 of the child's namespace. It goes through the child's own /proc
// directory, since ours may belong to another process namespace than we do.
func mapUser(proc int, m mode) error {
	gid := os.Getegid()
	if m.hostUID != os.Geteuid() {
		gid = m.hostUID
	}
	for _, f := range []struct{ name, text string }{
		{"setgroups", map[bool]string{true: "deny", false: "allow"}[m.hostUID == os.Geteuid()]}, // allow takes privileges
		{"uid_map", fmt.Sprintf("0 %d 1", m.hostUID)},
		{"gid_map", fmt.Sprintf("0 %d 1", gid)},
	} {
		fd, err := unix.Openat(proc, f.name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte(f.text))
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("writing %q to the user namespace's %s: %w", f.text, f.name, err)
		}
	}
	return nil
}

// hear waits for word from the child, and returns the descriptor that came with it. Any other message is the text of an error.
func (g *Guest) hear(parent *os.File, word string) (int, error) {
	if err := g.awaitChild(int(parent.Fd())); err != nil {
		return -1, err
	}
	text, oob := make([]byte, len(word)), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(parent.Fd()), text, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("hearing from the jail child: %w", err)
	}
	if string(text[:n]) != word {
		_ = unix.SetsockoptTimeval(int(parent.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
		rest, _ := io.ReadAll(io.LimitReader(parent, 4096))
		message := strings.TrimSpace(string(text[:n]) + string(rest))
		if message == "" {
			message = "it ended without a word"
		}
		return -1, fmt.Errorf("the jail child failed: %s", message)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("the jail child sent no descriptor: %w", errors.Join(err, unix.EBADMSG))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("the jail child sent %d descriptors, not 1: %w", len(fds), errors.Join(err, unix.EBADMSG))
	}
	return fds[0], nil
}

// awaitChild waits until one of the descriptors is readable or its other end is gone, and meanwhile lets the traced
// child's signals pass.
func (g *Guest) awaitChild(fds ...int) error {
	var list []unix.PollFd
	for _, fd := range fds {
		list = append(list, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for deadline := time.Now().Add(startTimeout); ; {
		n, err := unix.Poll(list, 20)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the jail child did not get ready within %v", startTimeout)
		}
		var status unix.WaitStatus
		if tid, err := unix.Wait4(g.pid, &status, unix.WALL|unix.WNOHANG, nil); g.traced && err == nil && tid == g.pid && status.Stopped() {
			if g.passStop(status) {
				return nil
			}
		}
	}
}

// passStop lets a child that is not yet the guest go on. It reports true, and lets it wait, when it has just become the guest.
func (g *Guest) passStop(status unix.WaitStatus) bool {
	switch event := int(status >> 16); event {
	case 0:
		sig := status.StopSignal()
		if fatalInExec(sig) {
			// The old program is gone and the new cannot be loaded. The first process of a namespace does not die of its own.
			g.kill()
		}
		_ = ptraceCont(g.pid, sig)
	case unix.PTRACE_EVENT_EXEC:
		g.executed = true
	default:
		_ = ptraceCont(g.pid, 0)
	}
	return g.executed
}

// fatalInExec are the signals that a failing execve sends.
func fatalInExec(sig unix.Signal) bool { return sig == unix.SIGSEGV || sig == unix.SIGBUS }

// execute lets the child's one execveat through and returns when it has succeeded.
func (g *Guest) execute(parent *os.File) error {
	if err := g.awaitChild(g.listener); err != nil {
		return err
	}
	var n notification
	if err := ioctl(g.listener, notifRecv, &n); err != nil {
		return fmt.Errorf("receiving the first call: %w", err)
	}
	if n.Nr != unix.SYS_EXECVEAT || int(n.PID) != g.pid || n.Args[0] != childProgram {
		return fmt.Errorf("first call is %d of thread %d, not execveat of %d", n.Nr, n.PID, g.pid)
	}
	// Wake-ups on the same CPU are cheaper (Linux 6.6); without it all works.
	_ = ioctlValue(g.listener, notifSetFlags, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	if err := ioctl(g.listener, notifSend, &response{ID: n.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}); err != nil {
		return fmt.Errorf("letting the program be executed: %w", err)
	}
	if err := g.awaitExec(parent); err != nil {
		return err
	}
	// Of the new address space, so only now.
	g.status = openAt(g.proc, "status", unix.O_RDONLY)
	g.mem = openAt(g.proc, "mem", unix.O_RDWR)
	if g.status < 0 {
		return fmt.Errorf("the guest's /proc directory cannot be read: %w", unix.EACCES)
	}
	if !g.traced {
		return nil
	}
	g.maps = openAt(g.proc, "maps", unix.O_RDONLY)
	g.pagemap = openAt(g.proc, "pagemap", unix.O_RDONLY)
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(g.pid, &regs) == nil {
		g.entry = regs.Rip
	}
	if err := unix.PtraceSetOptions(g.pid, traceOptions); err != nil {
		return fmt.Errorf("tracing the guest: %w", err)
	}
	return ptraceCont(g.pid, 0)
}

func openAt(dir int, name string, flags int) int {
	fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// awaitExec returns when execve is over: stopped at its end when traced, else when it closed the socket.
func (g *Guest) awaitExec(parent *os.File) error {
	sock := int(parent.Fd())
	if err := g.awaitChild(sock, g.listener); err != nil {
		return err
	}
	// Closed means done. A call on the listener is the guest's first, unless the socket is still open: then it is
	// the child's word that execve failed.
	if closed, err := unix.Poll([]unix.PollFd{{Fd: int32(sock), Events: unix.POLLIN}}, 0); err == nil && closed == 0 {
		var n notification
		if err := ioctl(g.listener, notifRecv, &n); err != nil {
			return err
		}
		if int(n.PID) != g.pid || n.Nr != unix.SYS_EXECVEAT {
			return fmt.Errorf("%w: unexpected call %d of %d", errProgram, n.Nr, n.PID)
		}
		return fmt.Errorf("%w: %w", errProgram, syscall.Errno(n.Args[1]))
	}
	for g.traced && !g.executed {
		var status unix.WaitStatus
		_, err := unix.Wait4(g.pid, &status, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case status.Stopped():
			g.passStop(status)
		case status.Signaled():
			return fmt.Errorf("%w: %v while loading it", errProgram, status.Signal())
		default:
			return fmt.Errorf("%w: it ended while being loaded", errProgram)
		}
	}
	return nil
}
