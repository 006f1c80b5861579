//go:build linux && amd64

package process

import (
	"bytes"
	"io"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Guest is one running program. Its methods may be called from any goroutine.
type Guest struct {
	cfg      Config
	pid      int // in the supervisor's process namespace; unreaped until done
	self     uint32
	sender   int32 // si_pid of the signals that the supervisor sends
	listener int
	pidfd    int
	proc     int    // its /proc directory
	mem      int    // its /proc/PID/mem, or -1
	status   int    // its /proc/PID/status, or -1
	maps     int    // its /proc/PID/maps, or -1; as the next two only with ptrace
	pagemap  int    // its /proc/PID/pagemap, or -1
	entry    uint64 // where the program began, which it does not run any more, or 0
	traced   bool
	executed bool // the stop at the end of execve was seen; only during Start
	weak     bool
	jail     string

	receiving chan struct{} // holds a token while somebody receives notifications

	mu       sync.Mutex
	calls    map[int]*Call      // by TID: unanswered, or answered with the answer not yet taken
	last     map[int]*Call      // by TID: the call answered last, while its answer may yet be lost
	withheld map[int][]withheld // by TID, in order of arrival
	tids     map[int]struct{}   // threads that were seen; only with ptrace
	strikes  map[int]*strike    // by TID: what is to be done to a thread; nil until there was one
	received uint64             // notifications so far
	cloning  map[int]struct{}   // threads in a native clone
	threads  int
	waiting  []notification // clones that wait for another thread's end
	exited   int            // threads that ended
	hopeless int            // exited when last nobody ended in time
	backlog  []*Call        // received while Install waited, for Next
	exit     Exit
	killed   bool
	aborting bool // every thread that stops is recorded
	reaped   bool
	closed   bool

	done chan struct{}
}

// withheld is a signal that waits for the end of its thread's call.
type withheld struct {
	sig  unix.Signal
	info siginfo
	sent bool // sent again; info is put back when it arrives
}

// maxWithheld bounds the queued real-time signals of one thread.
const maxWithheld = 256

// PID returns the guest's process id in the supervisor's namespace.
func (g *Guest) PID() int { return g.pid }

// Traced reports whether ptrace is in use: crash reports have registers, and signals interrupt calls.
func (g *Guest) Traced() bool { return g.traced }

// Weak reports whether the guest runs without namespaces (Config.AllowWeak).
func (g *Guest) Weak() bool { return g.weak }

// Jail says in words how the guest is confined, and why no more strongly.
func (g *Guest) Jail() string { return g.jail }

// Threads returns the number of guest threads, as far as it is known without asking the kernel.
func (g *Guest) Threads() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.threads
}

// Next blocks for the next forwarded call. io.EOF means that the guest ends, or that Close was called; it is gone once Wait returns.
func (g *Guest) Next() (*Call, error) {
	g.receiving <- struct{}{}
	defer func() { <-g.receiving }()
	for {
		g.mu.Lock()
		if len(g.backlog) > 0 {
			c := g.backlog[0]
			g.backlog = g.backlog[1:]
			g.mu.Unlock()
			return c, nil
		}
		closed := g.closed
		g.mu.Unlock()
		if closed {
			return nil, io.EOF
		}
		if c, err := g.receive(-1); c != nil || err != nil {
			return c, err
		}
	}
}

// receive waits up to timeoutMs (-1: for ever) for one notification and returns its call, or nil when there
// was none or it has been dealt with. The caller holds the receiving token.
func (g *Guest) receive(timeoutMs int) (*Call, error) {
	fds := []unix.PollFd{{Fd: int32(g.listener), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, timeoutMs); err != nil {
		if err == unix.EINTR {
			return nil, nil
		}
		return nil, err
	}
	switch {
	case fds[0].Revents&unix.POLLIN != 0:
	case fds[0].Revents != 0:
		return nil, io.EOF // no thread is left that has the filter
	default:
		return nil, nil
	}
	// Received under the lock, so that the tracer, when it sees a thread stop, knows whether its call has been. It
	// does not block: there was a notification, and one that is withdrawn meanwhile is ENOENT.
	g.mu.Lock()
	defer g.mu.Unlock()
	var n notification
	switch err := ioctl(g.listener, notifRecv, &n); err {
	case nil:
		return g.accept(&n), nil
	case unix.ENOENT, unix.EINTR: // its thread was interrupted, or we were
		return nil, nil
	default:
		return nil, err
	}
}

// accept deals with one notification; it returns the call when the supervisor has to. g.mu is held.
func (g *Guest) accept(n *notification) *Call {
	tid := int(n.PID)
	g.received++
	last := g.last[tid]
	delete(g.last, tid)
	g.cloneOver(tid)
	switch n.Nr {
	case unix.SYS_CLONE:
		if makesThread(n.Args[0]) {
			g.clone(n, true)
			return nil
		}
	case unix.SYS_TKILL:
		if g.hasThread(n.Args[0], tid) && uint32(n.Args[1]) != uint32(unix.SIGKILL) {
			g.proceed(n)
			return nil
		}
		if uint32(n.Args[1]) == uint32(unix.SIGKILL) {
			g.suicide()
			return nil
		}
	case unix.SYS_EXIT_GROUP:
		g.exit.Data = g.data()
		g.proceed(n)
		return nil
	case unix.SYS_KILL, unix.SYS_TGKILL:
		sig := n.Args[1]
		if n.Nr == unix.SYS_TGKILL {
			sig = n.Args[2]
		}
		if uint32(n.Args[0]) == g.self && uint32(sig) == uint32(unix.SIGKILL) {
			g.suicide()
			return nil
		}
	}
	if c := g.calls[tid]; c != nil {
		if c.Nr == int(n.Nr) && c.ip == n.IP && c.Args == n.Args {
			// The kernel restarted the call (a withheld signal, a frozen or stopped cgroup): the same call.
			c.id, c.ordinal = n.ID, g.received
			if c.rebound != nil {
				close(c.rebound)
				c.rebound = nil
			}
			if c.done && c.answer.Error == 0 { // for Restart, the signals are on their way
				g.send(c)
			}
			return nil
		}
		c.vanish() // only without ptrace: a signal handler left it
	}
	if g.lostAnswer(last, n) {
		last.id, last.ordinal, last.stops = n.ID, g.received, 0
		g.calls[tid] = last
		if !g.resend(tid) {
			g.send(last)
		}
		return nil
	}
	c := &Call{TID: tid, Nr: int(n.Nr), Args: n.Args, g: g, ip: n.IP, id: n.ID, ordinal: g.received}
	g.calls[tid] = c
	for _, w := range g.withheld[tid] {
		if !w.sent {
			c.isIntr = true
		}
	}
	return c
}

// lostAnswer reports whether n is the call last, made again because a signal won the race against the answer that the kernel
// had already taken (in all kernels, as long as a wait can be interrupted). A thread that makes the same call twice looks alike,
// but then its second call was notified, and interrupted before it was received: one number is missing in the sequence
// of notifications. Notifications are received in the order of their numbers, so all that are missing below
// n's were interrupted like that. When other threads are missing some too, the call counts as new.
func (g *Guest) lostAnswer(last *Call, n *notification) bool {
	if last == nil || last.stops == 0 || last.Nr != int(n.Nr) || last.ip != n.IP || last.Args != n.Args {
		return false
	}
	missing := (n.ID - last.id) - (g.received - last.ordinal)
	return missing == uint64(last.stops-1)
}

// send gives the kernel the answer of c; g.mu is held. When the thread is not waiting at the moment, the answer stays with
// c until the tracer or the restarted call takes it.
func (g *Guest) send(c *Call) error {
	answer := c.answer
	answer.ID = c.id
	err := ioctl(g.listener, notifSend, &answer)
	switch err {
	case nil:
		delete(g.calls, c.TID)
		if g.traced && answer.Flags == 0 {
			c.stops = 0
			g.last[c.TID] = c
		}
		g.resend(c.TID)
	case unix.ENOENT:
		err = nil
	}
	return err
}

// proceed lets the notified call run on the host kernel; g.mu is held. Its arguments are plain numbers, so that nothing
// can change between the check and the call.
func (g *Guest) proceed(n *notification) bool {
	err := ioctl(g.listener, notifSend, &response{ID: n.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
	g.resend(int(n.PID))
	return err == nil
}

// hasThread reports whether tid, as the guest names it, is a thread of the guest.
func (g *Guest) hasThread(tid uint64, caller int) bool {
	if !g.weak {
		return true // there are no others in its namespace
	}
	if int(uint32(tid)) == caller {
		return true
	}
	var st unix.Stat_t
	return unix.Fstatat(g.proc, "task/"+strconv.Itoa(int(uint32(tid))), &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// suicide ends a guest that sends SIGKILL to itself, which the first process of a namespace cannot; g.mu is held.
func (g *Guest) suicide() {
	if g.exit.Signal == 0 {
		g.exit.Signal = unix.SIGKILL
	}
	g.kill()
}

// resend sends the withheld signals of tid again; g.mu is held. It reports whether there were any.
func (g *Guest) resend(tid int) bool {
	any := false
	for i := range g.withheld[tid] {
		if w := &g.withheld[tid][i]; !w.sent {
			w.sent, any = true, true
			_ = unix.Tgkill(g.pid, tid, w.sig) // fails only when the thread is gone
		}
	}
	return any
}

// await returns once rebound is closed, receiving notifications itself when nobody else does.
func (g *Guest) await(rebound <-chan struct{}) error {
	for {
		select {
		case <-rebound:
			return nil
		case <-g.done:
			return ErrGone
		case g.receiving <- struct{}{}:
			c, err := g.receive(10)
			if c != nil {
				g.mu.Lock()
				g.backlog = append(g.backlog, c)
				g.mu.Unlock()
			}
			<-g.receiving
			if err != nil {
				return err
			}
		}
	}
}

// Signal sends sig to the guest's process. A signal that the guest does not handle has its default action.
// Errors: ErrGone.
func (g *Guest) Signal(sig syscall.Signal) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reaped {
		return ErrGone
	}
	if g.traced || sig == unix.SIGKILL {
		return g.post(sig)
	}
	// Untraced, the first process of a namespace would ignore signals that it does not handle.
	if !g.weak && !ignoredByDefault(sig) && !stopsByDefault(sig) && g.disposition(sig) == byDefault {
		g.exit.Signal = sig
		sig = unix.SIGKILL
	}
	return g.post(sig)
}

// post sends a signal to the process, whatever became of its number.
func (g *Guest) post(sig syscall.Signal) error {
	err := unix.PidfdSendSignal(g.pidfd, sig, nil, 0)
	if err == unix.ESRCH {
		return ErrGone
	}
	return err
}

// Kill ends the guest at once. It is no error that it is gone already.
func (g *Guest) Kill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.killed = g.killed || !g.reaped && g.exit.Signal == 0
	g.kill()
}

// kill sends SIGKILL; g.mu is held.
func (g *Guest) kill() {
	if !g.reaped {
		_ = g.post(unix.SIGKILL) // fails only when it is gone
	}
}

// Abort ends a guest that hangs, and records the state of its threads in Exit.Threads first. It returns at once; a thread that
// does not stop within abortWait is left out. An untraced guest is just killed.
func (g *Guest) Abort() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reaped || g.aborting || g.killed || g.exit.Signal != 0 {
		return
	}
	g.killed = true
	g.exit.Data = g.data()
	if !g.traced {
		g.kill()
		return
	}
	g.aborting = true
	_ = g.post(unix.SIGSTOP)
	time.AfterFunc(abortWait, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.kill()
	})
}

// abortWait is generous: a thread stops within microseconds once it runs.
const abortWait = 200 * time.Millisecond

// Wait blocks until the guest is gone and returns how it ended.
func (g *Guest) Wait() Exit {
	<-g.done
	return g.exit
}

// Done is closed when the guest is gone and Wait will not block.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Close kills the guest, waits for its end and releases the descriptors. Next returns io.EOF from then on; the
// other methods fail.
func (g *Guest) Close() error {
	g.Kill()
	<-g.done
	g.receiving <- struct{}{} // the listener hangs up with the guest, so nobody stays in receive
	defer func() { <-g.receiving }()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	for _, fd := range []*int{&g.listener, &g.pidfd, &g.proc, &g.mem, &g.status, &g.maps, &g.pagemap} {
		if *fd >= 0 {
			unix.Close(*fd)
		}
		*fd = -1
	}
	return nil
}

// Resident returns how much memory the guest has of its own and touched, in bytes; false when the host does not say.
func (g *Guest) Resident() (uint64, bool) {
	n, ok := g.statusNumber("RssAnon:", 10)
	return n << 10, ok
}

// statusNumber reads one number from /proc/PID/status.
func (g *Guest) statusNumber(key string, base int) (uint64, bool) {
	var buf [4096]byte
	if g.status < 0 {
		return 0, false
	}
	n, err := unix.Pread(g.status, buf[:], 0)
	if err != nil {
		return 0, false
	}
	return statusField(buf[:n], key, base)
}

func statusField(status []byte, key string, base int) (uint64, bool) {
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
			v, err := strconv.ParseUint(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte("kB")))), base, 64)
			return v, err == nil
		}
	}
	return 0, false
}
