//go:build linux && amd64

package process

import (
	"errors"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// strike is what is to be done to a stopped thread.
type strike struct {
	do   func(regs *unix.PtraceRegs) (unix.Signal, error)
	done chan error
}

// strikeSignal stops a thread for a strike: the last real-time signal, which few programs use. The thread does not see it.
const strikeSignal = unix.Signal(64)

// Errors of Strike.
var (
	// ErrUntraced reports a guest that cannot be stopped because it is not traced.
	ErrUntraced = errors.New("process: threads cannot be stopped without ptrace")
	// ErrBusy reports a thread that did not stop in time.
	ErrBusy = errors.New("process: the thread is in a call")
)

// TIDs returns the threads of a traced guest, in order.
func (g *Guest) TIDs() []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.tids))
}

// Strike stops thread tid in user mode or in a call of the host kernel's and calls do, which may change its registers and the guest's memory, and returns a signal to
// deliver or 0. A forwarded call that it is in ends first, as by a signal. Errors: ErrUntraced; ErrBusy where the thread did not stop within limit; ErrGone; do's.
func (g *Guest) Strike(tid int, limit time.Duration, do func(regs *unix.PtraceRegs) (unix.Signal, error)) error {
	s := &strike{do: do, done: make(chan error, 1)}
	g.mu.Lock()
	switch {
	case !g.traced:
		g.mu.Unlock()
		return ErrUntraced
	case g.reaped:
		g.mu.Unlock()
		return ErrGone
	case g.strikes[tid] != nil:
		g.mu.Unlock()
		return ErrBusy
	}
	if g.strikes == nil {
		g.strikes = map[int]*strike{}
	}
	g.strikes[tid] = s
	err := unix.Tgkill(g.pid, tid, strikeSignal)
	if err != nil {
		delete(g.strikes, tid)
	}
	g.mu.Unlock()
	if err != nil {
		return ErrGone
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-s.done:
		return err
	case <-g.done:
		return ErrGone
	case <-timer.C:
	}
	g.mu.Lock()
	if g.strikes[tid] == s {
		g.strikes[tid] = &strike{} // a signal of it is still under way, which the thread must not see
		g.mu.Unlock()
		return ErrBusy
	}
	g.mu.Unlock()
	return <-s.done
}

// awaits reports whether a strike waits for thread tid.
func (g *Guest) awaits(tid int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.strikes[tid] != nil
}

// strikeThread does to a stopped thread what waits for it, and returns the signal with which it goes on. It runs on the tracer's thread.
func (g *Guest) strikeThread(tid int, regs *unix.PtraceRegs) unix.Signal {
	g.mu.Lock()
	s := g.strikes[tid]
	delete(g.strikes, tid)
	g.mu.Unlock()
	if s == nil || s.do == nil {
		return 0
	}
	endCall(regs)
	sig, err := s.do(regs)
	if err == nil {
		err = unix.PtraceSetRegs(tid, regs)
	}
	if err == nil && sig != 0 && g.disposition(sig) == byDefault {
		s.done <- nil
		g.crash(tid, sig, &siginfo{Signo: int32(sig)})
		return sig
	}
	s.done <- err
	return sig
}

// Results of interrupted calls that only the kernel sees (linux/errno.h), beside errRestartSys.
const (
	errRestartNoIntr  = 513
	errRestartNoHand  = 514
	errRestartBlocked = 516
)

// endCall makes regs those of user mode about to make its interrupted system call again, as the kernel would do when the thread goes on: it would do so at
// whatever address the registers then hold.
func endCall(regs *unix.PtraceRegs) {
	if int64(regs.Orig_rax) >= 0 {
		switch -int64(regs.Rax) {
		case errRestartSys, errRestartNoIntr, errRestartNoHand:
			regs.Rip, regs.Rax = regs.Rip-syscallLength, regs.Orig_rax
		case errRestartBlocked:
			regs.Rip, regs.Rax = regs.Rip-syscallLength, unix.SYS_RESTART_SYSCALL
		}
	}
	regs.Orig_rax = ^uint64(0)
}

// Entry returns where the program began, whose code it does not run any more; 0 where it is not known.
func (g *Guest) Entry() uint64 { return g.entry }
