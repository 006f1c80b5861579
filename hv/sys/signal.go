package sys

import (
	"encoding/binary"
	"math/bits"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
	"github.com/grailos/grail/hv"
)

// siginfo is the part of Linux's siginfo_t that guests see: signal, code, and two words whose meaning
// depends on the code (address of a fault, sender, or timer).
type siginfo struct {
	signo, code int
	a, b        uint64
	taken       bool // the fault is that the memory at a was taken by force
}

// si_code values (Linux include/uapi/asm-generic/siginfo.h).
const (
	siKernel = 0x80
	siTimer  = -2
	siTkill  = -6
)

const (
	numSignals   = 64
	sigactionLen = amd64.ActionSize
	unblockable  = 1<<(uint(unix.SIGKILL)-1) | 1<<(uint(unix.SIGSTOP)-1)
)

// sigaction is the kernel's struct sigaction on amd64.
type sigaction struct{ handler, flags, restorer, mask uint64 }

const (
	sigDefault = 0
	sigIgnore  = 1

	saOnStack   = 0x08000000
	saRestart   = 0x10000000
	saNoDefer   = 0x40000000
	saResetHand = 0x80000000
)

type sigStack struct {
	sp, size uint64
	flags    uint32
}

// signals is the signal state of a guest.
type signals struct {
	guest *Guest

	mu      sync.Mutex
	actions []byte // page that the guest writes too, see amd64.ActionSize
	pending uint64 // for whichever thread takes it
	infos   [numSignals + 1]siginfo
}

// action returns what is to be done with sig. The guest may be writing it at the same time.
func (s *signals) action(sig int) sigaction {
	b, le := s.actions[sig*sigactionLen:], binary.LittleEndian
	return sigaction{le.Uint64(b[0:]), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:]) &^ unblockable}
}

func (s *signals) setAction(sig int, a sigaction) {
	b := s.actions[sig*sigactionLen:]
	for i, v := range []uint64{a.handler, a.flags, a.restorer, a.mask} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
}

func bit(sig int) uint64 { return 1 << (sig - 1) }

// ignoredByDefault are the signals whose default action is nothing. Stop signals have no effect either: there
// is no job control inside a VM.
const ignoredByDefault = 1<<(uint(unix.SIGCHLD)-1) | 1<<(uint(unix.SIGURG)-1) | 1<<(uint(unix.SIGWINCH)-1) |
	1<<(uint(unix.SIGCONT)-1) | 1<<(uint(unix.SIGSTOP)-1) | 1<<(uint(unix.SIGTSTP)-1) |
	1<<(uint(unix.SIGTTIN)-1) | 1<<(uint(unix.SIGTTOU)-1)

// ignored reports whether sig has no effect now. The caller holds s.mu.
func (s *signals) ignored(sig int) bool {
	h := s.action(sig).handler
	return h == sigIgnore || h == sigDefault && ignoredByDefault&bit(sig) != 0
}

// send makes a signal pending for t, or for any thread when t is nil, and interrupts who takes it.
func (s *signals) send(t *thread, info siginfo) {
	sig := info.signo
	if sig == int(unix.SIGKILL) {
		s.guest.finish(End{Cause: hv.CauseSignal, Signal: sig})
		return
	}
	g := s.guest
	g.mu.Lock()
	all := make([]*thread, 0, len(g.threads))
	for _, other := range g.threads {
		all = append(all, other)
	}
	g.mu.Unlock()

	s.mu.Lock()
	target := t
	if t == nil {
		for _, other := range all { // any that does not block it; the main thread first, as Linux
			if (other.mask&^other.wanted)&bit(sig) == 0 && (target == nil || other.tid < target.tid) {
				target = other
			}
		}
	}
	if s.ignored(sig) && (target == nil || (target.mask|target.wanted)&bit(sig) == 0) {
		s.mu.Unlock()
		return
	}
	if t == nil {
		if s.pending&bit(sig) == 0 {
			s.infos[sig] = info
		}
		s.pending |= bit(sig)
	} else {
		if t.pending&bit(sig) == 0 {
			t.infos[sig] = info
		}
		t.pending |= bit(sig)
	}
	s.mu.Unlock()
	if target != nil {
		target.interrupt()
	}
}

// mustLook reports whether the thread has to return to prepare: the guest ends, a signal is due, or a fault is to be made.
func (t *thread) mustLook() bool {
	s := &t.g.signals
	s.mu.Lock()
	due := (t.pending | s.pending) &^ (t.mask &^ t.wanted)
	s.mu.Unlock()
	return due != 0 || t.fault.Load() != nil || t.g.ending()
}

// take removes and returns the next due signal. The caller holds s.mu.
func (t *thread) take() (siginfo, bool) {
	return t.takeOf(^t.mask)
}

// takeOf removes and returns the next pending signal of set. The caller holds s.mu.
func (t *thread) takeOf(set uint64) (siginfo, bool) {
	s := &t.g.signals
	due := (t.pending | s.pending) & set
	if due == 0 {
		return siginfo{}, false
	}
	sig := bits.TrailingZeros64(due) + 1
	if t.pending&bit(sig) != 0 {
		t.pending &^= bit(sig)
		return t.infos[sig], true
	}
	s.pending &^= bit(sig)
	return s.infos[sig], true
}

// deliver makes the thread enter its handlers for all due signals, and restarts an interrupted system call where
// no handler forbids it. False means that a signal has ended the guest.
func (t *thread) deliver() bool {
	s := &t.g.signals
	for {
		s.mu.Lock()
		info, ok := t.take()
		if !ok {
			if t.restoreMask != nil {
				t.mask, t.restoreMask = *t.restoreMask, nil
			}
			s.mu.Unlock()
			t.restart(true)
			return true
		}
		if s.ignored(info.signo) {
			s.mu.Unlock()
			continue
		}
		act := s.action(info.signo)
		if act.handler == sigDefault {
			s.mu.Unlock()
			t.recordIfNone(info)
			if info.taken {
				t.g.finish(t.g.lostMemory(info.a))
				return false
			}
			t.g.finish(End{Cause: hv.CauseSignal, Signal: info.signo})
			return false
		}
		if act.flags&saResetHand != 0 {
			s.setAction(info.signo, sigaction{handler: sigDefault})
		}
		old := t.mask
		if t.restoreMask != nil {
			old, t.restoreMask = *t.restoreMask, nil
		}
		t.mask |= act.mask &^ unblockable
		if act.flags&saNoDefer == 0 {
			t.mask |= bit(info.signo)
		}
		s.mu.Unlock()
		t.restart(act.flags&saRestart != 0)
		if err := t.pushFrame(act, info, old); err != nil {
			t.g.finish(End{Cause: hv.CauseSignal, Signal: int(unix.SIGSEGV),
				Message: "no stack to deliver a signal on"})
			return false
		}
	}
}

// restart prepares an interrupted system call to be made again, if it is one that may, or lets it return EINTR.
func (t *thread) restart(again bool) {
	nr := t.current
	t.current = noCall
	if nr == noCall || !again {
		return
	}
	r := t.cpu.Regs()
	r.RAX = nr
	r.RIP -= syscallLen
	t.cpu.Restore()
}

const (
	noCall     = ^uint64(0)
	syscallLen = 2 // bytes of the SYSCALL instruction
)

// force delivers the signal of a fault: it cannot be blocked or ignored.
func (t *thread) force(info siginfo) {
	s := &t.g.signals
	s.mu.Lock()
	if s.action(info.signo).handler <= sigIgnore || t.mask&bit(info.signo) != 0 {
		s.setAction(info.signo, sigaction{handler: sigDefault})
		t.mask &^= bit(info.signo)
	}
	t.pending |= bit(info.signo)
	t.infos[info.signo] = info
	s.mu.Unlock()
}

// swapMask implements vfs.Call.Mask.
func (t *thread) swapMask(set uint64) func() {
	s := &t.g.signals
	s.mu.Lock()
	old := t.mask
	t.mask = set &^ unblockable
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		if (t.pending|s.pending)&^t.mask != 0 {
			t.restoreMask = &old // the handler runs under the call's mask first
		} else {
			t.mask = old
		}
		s.mu.Unlock()
	}
}

// Signal system calls.

func (t *thread) rtSigaction(a [6]uint64) (uint64, error) {
	sig, s := int(int32(a[0])), &t.g.signals
	if sig < 1 || sig > numSignals || a[3] != 8 || a[1] != 0 && unblockable&bit(sig) != 0 {
		return 0, unix.EINVAL
	}
	var b [sigactionLen]byte
	var act sigaction
	if a[1] != 0 {
		if err := t.g.space.CopyIn(a[1], b[:]); err != nil {
			return 0, err
		}
		le := binary.LittleEndian
		act = sigaction{le.Uint64(b[0:]), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:]) &^ unblockable}
	}
	s.mu.Lock()
	old := s.action(sig)
	if a[1] != 0 {
		s.setAction(sig, act)
		if s.ignored(sig) {
			s.pending &^= bit(sig)
		}
	}
	s.mu.Unlock()
	if a[2] != 0 {
		for i, v := range []uint64{old.handler, old.flags, old.restorer, old.mask} {
			binary.LittleEndian.PutUint64(b[8*i:], v)
		}
		return 0, t.g.space.CopyOut(a[2], b[:])
	}
	return 0, nil
}

func (t *thread) rtSigprocmask(a [6]uint64) (uint64, error) {
	if a[3] != 8 {
		return 0, unix.EINVAL
	}
	s := &t.g.signals
	var set uint64
	if a[1] != 0 {
		var err error
		if set, err = t.load64(a[1]); err != nil {
			return 0, err
		}
		set &^= unblockable
	}
	s.mu.Lock()
	old := t.mask
	if a[1] != 0 {
		switch a[0] {
		case unix.SIG_BLOCK:
			t.mask |= set
		case unix.SIG_UNBLOCK:
			t.mask &^= set
		case unix.SIG_SETMASK:
			t.mask = set
		default:
			s.mu.Unlock()
			return 0, unix.EINVAL
		}
	}
	s.mu.Unlock()
	if a[2] != 0 {
		return 0, t.store64(a[2], old)
	}
	return 0, nil
}

func (t *thread) rtSigpending(a [6]uint64) (uint64, error) {
	s := &t.g.signals
	s.mu.Lock()
	set := (t.pending | s.pending) & t.mask
	s.mu.Unlock()
	return 0, t.store64(a[0], set)
}

func (t *thread) rtSigsuspend(a [6]uint64) (uint64, error) {
	set, err := t.load64(a[0])
	if err != nil {
		return 0, err
	}
	restore := t.swapMask(set)
	t.parked.arm()
	err = t.park(forever)
	restore()
	return 0, err
}

const (
	ssDisable     = 2
	ssOnStack     = 1
	minSigStack   = 2048
	sigStackBytes = 24
)

func (t *thread) onAltStack() bool {
	sp := t.cpu.Regs().RSP
	return t.altStack.size != 0 && sp > t.altStack.sp && sp <= t.altStack.sp+t.altStack.size
}

func (t *thread) sigaltstack(a [6]uint64) (uint64, error) {
	var b [sigStackBytes]byte
	le := binary.LittleEndian
	next := t.altStack
	if a[0] != 0 {
		if err := t.g.space.CopyIn(a[0], b[:]); err != nil {
			return 0, err
		}
		next = sigStack{sp: le.Uint64(b[0:]), flags: le.Uint32(b[8:]), size: le.Uint64(b[16:])}
		switch {
		case t.onAltStack():
			return 0, unix.EPERM
		case next.flags&ssDisable != 0:
			next = sigStack{}
		case next.size < minSigStack:
			return 0, unix.ENOMEM
		case next.sp > amd64.SystemBase || next.size > amd64.SystemBase-next.sp:
			return 0, unix.EFAULT
		}
	}
	if a[1] != 0 {
		clear(b[:])
		flags := uint32(0)
		if t.altStack.size == 0 {
			flags = ssDisable
		} else if t.onAltStack() {
			flags = ssOnStack
		}
		le.PutUint64(b[0:], t.altStack.sp)
		le.PutUint32(b[8:], flags)
		le.PutUint64(b[16:], t.altStack.size)
		if err := t.g.space.CopyOut(a[1], b[:]); err != nil {
			return 0, err
		}
	}
	t.altStack = next
	return 0, nil
}

// kill serves kill, tkill, tgkill and rt_sigqueueinfo. There is one process, 1, whose threads are numbered from 1.
func (t *thread) kill(pid int32, tid int32, sig int32, code int) (uint64, error) {
	return t.killWith(pid, tid, sig, siginfo{signo: int(sig), code: code, a: 1})
}

func (t *thread) killWith(pid, tid, sig int32, info siginfo) (uint64, error) {
	if sig < 0 || sig > numSignals || pid > 1 {
		if pid > 1 {
			return 0, unix.ESRCH
		}
		return 0, unix.EINVAL
	}
	var target *thread
	if tid != 0 {
		t.g.mu.Lock()
		target = t.g.threads[int(tid)]
		t.g.mu.Unlock()
		if target == nil {
			return 0, unix.ESRCH
		}
	}
	if sig != 0 {
		t.g.signals.send(target, info)
	}
	return 0, nil
}
