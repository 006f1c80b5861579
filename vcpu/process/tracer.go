//go:build linux && amd64

package process

import (
	"golang.org/x/sys/unix"
)

const (
	traceOptions = unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACECLONE
	// spawnOptions do not follow the Go threads of the jail child, which execve ends.
	spawnOptions = unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACEEXEC
)

// trace waits for the guest until its end, and serves its stops. It runs on the thread that forked and traces it.
func (g *Guest) trace() {
	for {
		var status unix.WaitStatus
		// The guest leads a process group of its own, so nobody else's children are taken.
		tid, err := unix.Wait4(-g.pid, &status, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case err == unix.EINTR:
		case err != nil: // ECHILD: somebody else waited for every child
			g.finish(0)
			return
		case status.Stopped():
			g.stopped(tid, status)
		case tid == g.pid:
			g.finish(status)
			return
		default:
			g.threadGone(tid)
		}
	}
}

// stopped serves one stop of one thread and lets it go on. Failing requests are not errors: ESRCH means that
// SIGKILL got there first.
func (g *Guest) stopped(tid int, status unix.WaitStatus) {
	sig := status.StopSignal()
	switch event := int(status>>16) & 0xff; event {
	case 0:
		g.signalled(tid, sig)
	case unix.PTRACE_EVENT_CLONE:
		g.mu.Lock()
		g.threads++
		g.cloneOver(tid)
		g.mu.Unlock()
		_ = ptraceCont(tid, 0)
	case unix.PTRACE_EVENT_STOP:
		if stopsByDefault(sig) {
			g.recordThread(tid)
			_ = ptraceListen(tid) // a group stop: stay stopped until SIGCONT
		} else {
			g.mu.Lock()
			g.tids[tid] = struct{}{}
			g.mu.Unlock()
			_ = ptraceCont(tid, 0) // a new thread, or the end of a group stop
		}
	default:
		// A second execve or a fork: the filter forbids both, so the jail is broken.
		g.mu.Lock()
		g.suicide()
		g.mu.Unlock()
	}
}

// signalled decides about a signal that is about to be delivered to a thread.
func (g *Guest) signalled(tid int, sig unix.Signal) {
	var info siginfo
	if ptraceInfo(unix.PTRACE_GETSIGINFO, tid, &info) != nil {
		return
	}
	struck := sig == strikeSignal && g.awaits(tid)
	if !struck && !ignoredByDefault(sig) && !stopsByDefault(sig) && g.disposition(sig) == byDefault {
		g.crash(tid, sig, &info)
		return
	}
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(tid, &regs) != nil {
		return
	}
	sig = g.deliver(tid, sig, &info, &regs)
	if struck && sig != 0 {
		sig = g.strikeThread(tid, &regs)
	}
	_ = ptraceCont(tid, sig)
}

// deliver returns the signal with which the thread goes on: sig, or 0 when it is withheld until the call ends. It
// changes the registers of a thread that was taken out of a call.
func (g *Guest) deliver(tid int, sig unix.Signal, info *siginfo, regs *unix.PtraceRegs) unix.Signal {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.restoreInfo(tid, sig, info) {
		return 0
	}
	where := g.place(tid, regs)
	if where == elsewhere || stopsByDefault(sig) {
		if where == elsewhere {
			delete(g.last, tid) // it took its answer
		}
		return sig
	}
	drop := false
	if d := g.disposition(sig); g.strikes[tid] != nil && sig == strikeSignal {
		// The program never sees it.
	} else if d == ignored || d == byDefault && ignoredByDefault(sig) {
		drop = true // such a signal interrupts no call
	}
	c := g.calls[tid]
	if c != nil && c.done && c.answer.Flags == 0 {
		// The answer came while the thread was out of its wait: put it into the registers.
		regs.Rip, regs.Rax, regs.Orig_rax = c.ip, uint64(c.answer.Val), ^uint64(0)
		if c.answer.Error != 0 { // Restart: the kernel decides between EINTR and making the call again
			regs.Rax, regs.Orig_rax = uint64(int64(c.answer.Error)), uint64(c.Nr)
		}
		_ = unix.PtraceSetRegs(tid, regs)
		delete(g.calls, tid)
	} else {
		if where == leaving {
			// Do the kernel's restart here, so that a second signal at this same stop is told from one after
			// the call was made again.
			regs.Rip, regs.Rax, regs.Orig_rax = regs.Rip-syscallLength, regs.Orig_rax, ^uint64(0)
			_ = unix.PtraceSetRegs(tid, regs)
		}
		switch last := g.last[tid]; {
		case c != nil:
			c.interrupt(!drop)
		case last == nil:
			return sig // the call was never received: the handler comes before it
		case where == leaving:
			last.stops++ // the call was never received, or its answer was lost: accept will know
		}
		if !drop {
			g.withhold(tid, sig, info)
		}
		return 0
	}
	if drop {
		return 0
	}
	return sig
}

// place is where a thread stopped for a signal.
type place int

const (
	elsewhere place = iota // not in a forwarded call
	leaving                // on its way out of a forwarded call, without a result
	returning              // about to make it again
)

const syscallLength = 2 // bytes of the instruction

// place finds out where tid stopped; g.mu is held. It forgets the last answer when the thread has certainly taken it.
func (g *Guest) place(tid int, regs *unix.PtraceRegs) place {
	args := [6]uint64{regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8, regs.R9}
	is := func(c *Call, nr uint64, ip uint64) bool {
		return c != nil && uint64(c.Nr) == nr && c.ip == ip && c.Args == args
	}
	c, last := g.calls[tid], g.last[tid]
	restart := int64(errRestartSys)
	if regs.Rax == uint64(-restart) && int64(regs.Orig_rax) >= 0 && !native(g.cfg.Native, g.self, regs.Orig_rax, &args) {
		if !is(last, regs.Orig_rax, regs.Rip) {
			delete(g.last, tid)
		}
		if c != nil && !is(c, regs.Orig_rax, regs.Rip) {
			return elsewhere
		}
		return leaving
	}
	if is(c, regs.Rax, regs.Rip+syscallLength) || c == nil && last != nil && last.stops > 0 && is(last, regs.Rax, regs.Rip+syscallLength) {
		return returning
	}
	return elsewhere
}

// withhold queues a signal; g.mu is held. A standard signal is queued once, as in the kernel.
func (g *Guest) withhold(tid int, sig unix.Signal, info *siginfo) {
	queue := g.withheld[tid]
	if len(queue) >= maxWithheld {
		return
	}
	if sig < firstRealTime {
		for _, w := range queue {
			if w.sig == sig && !w.sent {
				return
			}
		}
	}
	g.withheld[tid] = append(queue, withheld{sig: sig, info: *info})
}

// restoreInfo puts the original siginfo back when a withheld signal arrives again; g.mu is held. It reports false for one to
// drop: when the guest sends the same standard signal meanwhile, either may arrive first, alone or followed by the other;
// the first stands for both.
func (g *Guest) restoreInfo(tid int, sig unix.Signal, info *siginfo) bool {
	const sentByTkill = -6 // SI_TKILL (asm-generic/siginfo.h)
	if info.Code != sentByTkill {
		return true
	}
	ours := info.pid() == g.sender
	queue := g.withheld[tid]
	for i, w := range queue {
		if w.sent && w.sig == sig && (ours || sig < firstRealTime) {
			*info = w.info
			_ = ptraceInfo(unix.PTRACE_SETSIGINFO, tid, info)
			g.withheld[tid] = append(queue[:i:i], queue[i+1:]...)
			if len(g.withheld[tid]) == 0 {
				delete(g.withheld, tid)
			}
			return true
		}
	}
	return !ours || sig == strikeSignal && g.strikes[tid] != nil
}

// firstRealTime is the first signal that the kernel queues rather than merges.
const firstRealTime = 32

// threadGone forgets a thread that ended.
func (g *Guest) threadGone(tid int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.threads--
	g.exited++
	g.cloneOver(tid)
	delete(g.withheld, tid)
	delete(g.last, tid)
	delete(g.tids, tid)
	if c := g.calls[tid]; c != nil {
		c.vanish()
		delete(g.calls, tid)
	}
	g.retryClone()
}

// finish records the end of the guest.
func (g *Guest) finish(status unix.WaitStatus) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reaped = true
	g.threads = 0
	switch {
	case g.exit.Signal != 0: // recorded when it was decided
	case status.Exited():
		g.exit.Code = status.ExitStatus()
	case status.Signaled():
		g.exit.Signal = status.Signal()
		g.exit.Killed = g.killed && g.exit.Signal == unix.SIGKILL
	}
	for tid, c := range g.calls {
		c.vanish()
		delete(g.calls, tid)
	}
	close(g.done)
}

// disposition is what the guest does with a signal.
type disposition int

const (
	byDefault disposition = iota
	ignored
	handled
)

// disposition reads the guest's current choice. The masks of /proc/PID/status are the process's (proc(5)).
func (g *Guest) disposition(sig unix.Signal) disposition {
	var buf [4096]byte
	if g.status < 0 {
		return handled
	}
	n, err := unix.Pread(g.status, buf[:], 0)
	if err != nil {
		return handled
	}
	bit := uint64(1) << (uint(sig) - 1)
	if caught, ok := statusField(buf[:n], "SigCgt:", 16); !ok || caught&bit != 0 {
		return handled
	}
	if ign, _ := statusField(buf[:n], "SigIgn:", 16); ign&bit != 0 {
		return ignored
	}
	return byDefault
}

// Default actions (signal(7)).
func ignoredByDefault(sig unix.Signal) bool {
	return sig == unix.SIGCHLD || sig == unix.SIGURG || sig == unix.SIGWINCH || sig == unix.SIGCONT
}

func stopsByDefault(sig unix.Signal) bool {
	return sig == unix.SIGSTOP || sig == unix.SIGTSTP || sig == unix.SIGTTIN || sig == unix.SIGTTOU
}
