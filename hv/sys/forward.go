package sys

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/vfs"
	"github.com/grailos/grail/vcpu/process"
)

// ProcessGuest is a native program on engine process: a jailed host process whose memory, threads, signals and
// clocks are the host kernel's, and whose other system calls are forwarded here. Its methods are safe for
// concurrent use.
type ProcessGuest struct {
	cfg   Config
	guest *process.Guest

	mu         sync.Mutex
	calls      map[int]*forwarded // by thread
	install    []vfsDescriptor    // not yet installed in the guest
	installing sync.Mutex         // held while descriptors of install are on their way
	denied     map[uint64]int
	crash      *hv.Fault
	stopped    bool
	end        *End // of a guest that the VMM has ended for a reason

	orders  orders
	bound   atomic.Uint64 // of what the guest may use, in bytes
	watched atomic.Bool

	reserved atomic.Uint64 // bytes that are not asked for
	resident atomic.Uint64 // what the guest used when it was last looked at

	count atomic.Uint64
}

// vfsDescriptor is host memory that the guest maps natively, by the number that its table has for it.
type vfsDescriptor struct{ host, guest int }

// forwarded is what one guest thread needs to be served.
type forwarded struct {
	p    *ProcessGuest
	call vfs.Call
	now  *process.Call // being served
}

// NewProcess starts the program in its jail, stopped at its first system call until Run. It is called before the
// caller jails itself.
func NewProcess(cfg Config) (*ProcessGuest, error) {
	g, err := process.Start(process.Config{Program: cfg.Program, Argv: cfg.Argv, Env: cfg.Env,
		MemoryBytes: cfg.MemoryBytes, MaxThreads: cfg.MaxThreads})
	if err != nil {
		return nil, err
	}
	p := &ProcessGuest{cfg: cfg, guest: g, calls: make(map[int]*forwarded), denied: make(map[uint64]int)}
	p.bound.Store(cfg.MemoryBytes)
	if err := p.orders.open(); err != nil {
		g.Close()
		return nil, err
	}
	return p, nil
}

// Share makes memory capabilities that vfs has given the guest mappable: fd is the guest's number, host a
// descriptor that is taken over.
func (p *ProcessGuest) Share(fd int32, host int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.install = append(p.install, vfsDescriptor{host: host, guest: int(fd)})
}

// Run serves the guest to its end.
func (p *ProcessGuest) Run() End {
	var serving sync.WaitGroup
	for {
		c, err := p.guest.Next()
		if err != nil {
			break
		}
		p.count.Add(1)
		serving.Add(1)
		go func() {
			defer serving.Done()
			p.serve(c)
		}()
	}
	serving.Wait()
	exit := p.guest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end != nil {
		return *p.end
	}
	return p.ended(&exit)
}

func (p *ProcessGuest) thread(tid int) *forwarded {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.calls[tid]
	if f == nil {
		f = &forwarded{p: p}
		f.call = vfs.Call{Mem: f, Wait: f, Thread: tid}
		p.calls[tid] = f
	}
	return f
}

// serve answers one system call.
func (p *ProcessGuest) serve(c *process.Call) {
	p.installPending(c)
	f := p.thread(c.TID)
	f.now = c
	nr := uint64(uint32(c.Nr))
	if nr == unix.SYS_CLOSE && p.closeShared(c) {
		return
	}
	if fault := p.cfg.Table.Faults.Calls.Load(); fault != nil && p.faulty(f, fault, nr) {
		return
	}
	ret, err, ok := p.identity(f, nr, c.Args)
	if nr == abi.SysReclaim {
		ret, err = p.orders.syscall(f, f, c.Args, p.taken)
		ok = true
	}
	if !ok {
		var errno unix.Errno
		var known bool
		ret, errno, known = p.cfg.Table.Syscall(&f.call, nr, c.Args)
		err = nil
		switch {
		case !known:
			p.deny(nr)
			err = unix.ENOSYS
		case errno != 0:
			err = errno
			if errno == unix.EPIPE { // withheld until the call has returned
				_ = p.guest.Signal(unix.SIGPIPE)
			}
		}
	}
	if err == unix.EINTR && restartable(nr, c.Args) {
		if c.Restart() == nil {
			return
		}
	}
	if err != nil {
		var errno unix.Errno
		if !errors.As(err, &errno) {
			errno = unix.EFAULT
		}
		ret = process.Errno(errno)
	}
	p.installPending(c) // what the answer tells of may have come while the call waited
	_ = c.Return(ret)   // the thread may be gone: nobody is left to tell
}

// installPending gives the guest the descriptors that it may map. It returns once the guest has all of them, whichever call brings them: another thread's
// answer may be what tells of them.
func (p *ProcessGuest) installPending(c *process.Call) {
	p.installing.Lock()
	defer p.installing.Unlock()
	p.mu.Lock()
	todo := p.install
	p.install = nil
	p.mu.Unlock()
	for i, d := range todo {
		err := c.Install(d.host, d.guest, true)
		if errors.Is(err, process.ErrGone) || errors.Is(err, process.ErrAnswered) {
			p.mu.Lock()
			p.install = append(todo[i:], p.install...) // for another thread's call
			p.mu.Unlock()
			return
		}
		if err != nil {
			p.deny(abi.SysCaps) // shows up in inspect; the guest's mmap will fail with EBADF
		}
		unix.Close(d.host)
	}
}

// closeShared closes an installed descriptor in the guest too.
func (p *ProcessGuest) closeShared(c *process.Call) bool {
	m, errno := p.cfg.Table.Map(int32(c.Args[0]), 0, 1, unix.PROT_READ, unix.MAP_SHARED)
	if errno != 0 {
		return false
	}
	m.Release()
	if m.FD < 0 || m.Kind == abi.CapDevice { // never installed: the guest is not to have the device itself
		return false
	}
	f := p.thread(c.TID)
	p.cfg.Table.Syscall(&f.call, unix.SYS_CLOSE, c.Args)
	_ = c.Close()
	return true
}

// identity serves what the KVM engine's table serves beside vfs.
func (p *ProcessGuest) identity(f *forwarded, nr uint64, a [6]uint64) (uint64, error, bool) {
	switch nr {
	case unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETGROUPS, unix.SYS_SETPGID,
		unix.SYS_MLOCK, unix.SYS_MUNLOCK, unix.SYS_MLOCKALL, unix.SYS_MUNLOCKALL, unix.SYS_MSYNC,
		unix.SYS_SCHED_SETAFFINITY, unix.SYS_SETRLIMIT, unix.SYS_SETPRIORITY:
		return 0, nil, true
	case unix.SYS_GETPGRP, unix.SYS_GETPGID, unix.SYS_GETSID, unix.SYS_SETSID:
		return 1, nil, true
	case unix.SYS_UNAME:
		return 0, f.CopyOut(a[0], utsname()), true
	case unix.SYS_PRLIMIT64:
		if int32(a[0]) > 1 {
			return 0, unix.ESRCH, true
		}
		if a[3] == 0 {
			return 0, nil, true
		}
		return 0, f.CopyOut(a[3], rlimit(a[1], p.cfg.MaxThreads)), true
	case unix.SYS_GETRLIMIT:
		return 0, f.CopyOut(a[1], rlimit(a[0], p.cfg.MaxThreads)), true
	case unix.SYS_PRCTL:
		return 0, unix.EINVAL, true
	case unix.SYS_KILL:
		return 0, p.kill(int32(a[0]), int32(a[1])), true
	case unix.SYS_TGKILL, unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO:
		return 0, unix.ESRCH, true // those for the guest itself do not come here
	}
	return 0, nil, false
}

// kill serves kill(2) but for process 1, whose signals are the host kernel's business: groups, of which there is
// one, and processes that do not exist.
func (p *ProcessGuest) kill(pid, sig int32) error {
	switch {
	case sig < 0 || sig > numSignals:
		return unix.EINVAL
	case pid > 1:
		return unix.ESRCH
	case sig != 0:
		_ = p.guest.Signal(unix.Signal(sig)) // the caller is there, so its process is
	}
	return nil
}

// CopyIn implements vfs.Mem.
func (f *forwarded) CopyIn(addr uint64, b []byte) error {
	_, err := f.p.guest.ReadMem(addr, b)
	return err
}

// CopyOut implements vfs.Mem.
func (f *forwarded) CopyOut(addr uint64, b []byte) error {
	_, err := f.p.guest.WriteMem(addr, b)
	return err
}

// Segments implements vfs.Mem: another process's memory cannot be sliced.
func (f *forwarded) Segments(_, _ uint64, _ bool, dst [][]byte) ([][]byte, func(), bool, error) {
	return dst, nil, false, nil
}

// Poll implements vfs.Waiter.
func (f *forwarded) Poll(fds []unix.PollFd, timeout time.Duration) (int, error) {
	kick, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return 0, err
	}
	done, left := make(chan struct{}), make(chan struct{})
	interrupted := f.now.Interrupted()
	go func() {
		defer close(left)
		select {
		case <-interrupted:
			one := [8]byte{1}
			unix.Write(kick, one[:])
		case <-done:
		}
	}()
	defer func() { close(done); <-left; unix.Close(kick) }()
	all := append(fds[:len(fds):len(fds)], unix.PollFd{Fd: int32(kick), Events: unix.POLLIN})
	end := time.Now().Add(timeout)
	for {
		var ts *unix.Timespec
		if timeout >= 0 {
			t := unix.NsecToTimespec(max(0, time.Until(end)).Nanoseconds())
			ts = &t
		}
		n, err := unix.Ppoll(all, ts, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		copy(fds, all[:len(fds)])
		if all[len(fds)].Revents != 0 {
			if n == 1 {
				return 0, unix.EINTR
			}
			n--
		}
		return n, nil
	}
}

func (p *ProcessGuest) deny(nr uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.denied[nr]; !ok && len(p.denied) >= maxDenied {
		nr = ^uint64(0)
	}
	p.denied[nr]++
}

// Kill ends the guest, having looked where its threads are.
func (p *ProcessGuest) Kill() {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	p.guest.Abort()
}

// Signal sends a Linux signal to the guest.
func (p *ProcessGuest) Signal(sig int) error { return p.guest.Signal(unix.Signal(sig)) }

// Stats counts what the guest did so far. The memory that it uses is what the host's kernel says.
func (p *ProcessGuest) Stats() hv.Stats {
	requests, bytes := p.cfg.Table.DevStats()
	return hv.Stats{Syscalls: p.count.Load(), Threads: p.guest.Threads(), MemoryBytes: p.cfg.MemoryBytes, MemoryUsed: p.used(),
		DevRequests: requests, DevBytes: bytes, Memory: p.memoryState()}
}

// Fault returns the fault that ended the guest, or where a thread was when it was stopped, or nil.
func (p *ProcessGuest) Fault() *hv.Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.crash
}

// Denied returns how often each system call that does not exist here was made.
func (p *ProcessGuest) Denied() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return deniedNames(p.denied)
}

// Revoke does nothing: the mappings of another process cannot be replaced. The engine's weaker isolation shows here.
func (p *ProcessGuest) Revoke(uint64) error { return nil }

func deniedNames(denied map[uint64]int) map[string]int {
	out := make(map[string]int, len(denied))
	for nr, n := range denied {
		out[SyscallName(nr)] = n
	}
	return out
}

// Leader returns the number of the guest's first thread.
func (p *ProcessGuest) Leader() int { return p.guest.PID() }

// Limit implements what Guest does for engine kvm: it cannot, since the guest's threads run without the VMM.
func (p *ProcessGuest) Limit(milli int) error {
	if milli == 0 {
		return nil
	}
	return errors.New("engine process cannot throttle its guest")
}
