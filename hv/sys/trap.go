package sys

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/mm"
	"github.com/grailos/grail/vcpu/kvm"
)

// trap turns an exception into the signal that Linux would send. cause is why a page fault could not be served.
func (t *thread) trap(e kvm.Exit, cause error) {
	info := siginfo{signo: signalOf(e.Vector), code: siKernel}
	rip := t.cpu.Regs().RIP
	switch e.Vector {
	case amd64.VectorDivide:
		info.code, info.a = 1, rip // FPE_INTDIV
	case amd64.VectorDebug:
		info.code, info.a = 2, rip // TRAP_TRACE
	case amd64.VectorInvalidOp:
		info.code, info.a = 2, rip // ILL_ILLOPN
	case amd64.VectorAlignment:
		info.code = 1 // BUS_ADRALN
	case amd64.VectorFPU, amd64.VectorSIMD:
		info.code, info.a = 7, rip // FPE_FLTINV: the exact kind is in the FPU state
	case amd64.VectorPageFault:
		info.a = e.Addr
		switch {
		case errors.Is(cause, mm.ErrNoMemory):
			t.outOfMemory(e)
			return
		case errors.Is(cause, mm.ErrTaken):
			info = siginfo{signo: int(unix.SIGBUS), code: busAdrErr, a: e.Addr, taken: true}
			t.g.lost.Store(e.Addr)
		case errors.Is(cause, mm.ErrDenied):
			info.code = 2 // SEGV_ACCERR
		default:
			info.code = segvMapErr
		}
	}
	if r := t.cpu.Regs(); amd64.InFastPath(rip) {
		// A bad pointer to rt_sigaction: an error of the call, not a fault of the program.
		r.RAX, r.R10, r.RIP = unix.SYS_RT_SIGACTION, 8, r.RCX
		if !amd64.Canonical(r.RIP) { // a jump into the stub
			r.RIP = 0
		}
		t.cpu.Restore()
		t.syscall()
		return
	}
	t.record(&hv.Fault{Vector: e.Vector, Error: e.Error, Address: e.Addr, Signal: info.signo})
	if t.g.cfg.Driver && hopeless(info) {
		t.g.finish(End{Cause: hv.CauseSignal, Signal: info.signo})
		return
	}
	t.force(info)
}

// hopeless reports whether a driver's program, which is one in Go, can only say what it died of and exit: its clients would wait for that, and the record
// of the fault says more. The runtime makes a panic, from which a program may recover, of a fault near address 0; a program may also ask for panics where
// others have taken memory away from it or write-protected it.
func hopeless(info siginfo) bool {
	switch unix.Signal(info.signo) {
	case unix.SIGILL:
		return true
	case unix.SIGSEGV:
		const nilPage = 4096
		return info.code == segvMapErr && info.a >= nilPage
	}
	return false
}

// segvMapErr is the code of a SIGSEGV where nothing is mapped (Linux: SEGV_MAPERR).
const segvMapErr = 1

// signalOf returns the signal that Linux sends for an exception.
func signalOf(vector int) int {
	switch vector {
	case amd64.VectorDivide, amd64.VectorFPU, amd64.VectorSIMD:
		return int(unix.SIGFPE)
	case amd64.VectorDebug, amd64.VectorBreakpoint:
		return int(unix.SIGTRAP)
	case amd64.VectorInvalidOp:
		return int(unix.SIGILL)
	case amd64.VectorSegment, amd64.VectorStack, amd64.VectorAlignment:
		return int(unix.SIGBUS)
	}
	return int(unix.SIGSEGV)
}

// outOfMemory ends a guest that has used up its reservation.
func (t *thread) outOfMemory(e kvm.Exit) {
	t.record(&hv.Fault{Vector: e.Vector, Error: e.Error, Address: e.Addr, Signal: int(unix.SIGKILL)})
	t.g.finish(t.g.memoryEnd())
}

// busAdrErr is the code of a SIGBUS where there is no memory (Linux: BUS_ADRERR).
const busAdrErr = 2

// busError turns memory that the host cannot provide into what Linux sends for a mapped file that cannot be read. Which
// address it was, KVM does not say.
func (t *thread) busError() {
	t.record(&hv.Fault{Vector: -1, Signal: int(unix.SIGBUS)})
	t.force(siginfo{signo: int(unix.SIGBUS), code: busAdrErr})
}
