package sys

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/vcpu/process"
)

// ended says how the guest ended, and keeps where it was. p.mu is held.
func (p *ProcessGuest) ended(exit *process.Exit) End {
	end := End{Cause: hv.CauseExit, Code: exit.Code}
	switch {
	case p.stopped:
		end = End{Cause: hv.CauseStop, Message: "stopped on request"}
		if c := busiest(exit.Threads); c != nil {
			p.crash = faultOf(c, 0)
		}
	case exit.Signal != 0 || exit.Killed:
		end = End{Cause: hv.CauseSignal, Signal: int(exit.Signal)}
		if exit.Crash != nil {
			p.crash = faultOf(exit.Crash, exit.Signal)
		}
	case exit.Code == 0:
		return end
	}
	near := exit.Near(p.cfg.MemoryBytes)
	switch {
	case starved(p.cfg.Table.Said(), near, exit, p.stopped):
		return End{Cause: hv.CauseMemory, Message: "the guest used up its memory of " + mebibytes(p.cfg.MemoryBytes)}
	case near && !p.stopped:
		end.Message = fmt.Sprintf("with %s of at most %s of memory mapped", mebibytes(exit.Data), mebibytes(p.cfg.MemoryBytes+process.MemorySlack))
	}
	return end
}

// Starved reports whether the program's runtime has begun to say that it got no memory: it is dying of that, which may take it a while.
func (p *ProcessGuest) Starved() bool {
	return starved(p.cfg.Table.Said(), false, &process.Exit{}, true)
}

// goThrow is the exit code of a Go program whose runtime gives up.
const goThrow = 2

// starved reports whether a guest that failed did so for want of memory. The host's kernel refuses memory without a word to anybody but the program, so
// it is the program's runtime that knows: said is how it began to say so. A guest that lies here lies about itself alone.
func starved(said string, near bool, exit *process.Exit, stopped bool) bool {
	const golang, cpp = "fatal error: ", "std::bad_alloc"
	switch {
	case exit.Signal == unix.SIGABRT && strings.Contains(said, cpp):
		return true
	case !strings.HasPrefix(said, golang):
		return false
	case !stopped && exit.Code != goThrow && exit.Signal != unix.SIGABRT:
		return false // it had survived that
	}
	// Where Go's runtime does not check what it was given, the error is another one.
	return near && !stopped || strings.Contains(said, "out of memory") || strings.Contains(said, "cannot allocate memory")
}

// busiest returns the thread that tells most about a guest that was stopped: one that ran, else one that was in a call, or nil.
func busiest(threads []*process.Crash) *process.Crash {
	var inCall *process.Crash
	for _, c := range threads {
		switch {
		case int64(c.Regs.Orig_rax) < 0:
			return c
		case inCall == nil || inCall.Regs.Orig_rax == unix.SYS_FUTEX: // where threads without work wait
			inCall = c
		}
	}
	return inCall
}

// faultOf turns the state of a thread into the report's form. sig is the signal that ended the guest; 0: it was stopped.
func faultOf(c *process.Crash, sig unix.Signal) *hv.Fault {
	r := &c.Regs
	f := &hv.Fault{
		Thread: c.TID, Vector: -1, Address: c.Addr, Signal: int(sig), Frames: c.Frames,
		Regs: map[string]uint64{
			"rax": r.Rax, "rbx": r.Rbx, "rcx": r.Rcx, "rdx": r.Rdx, "rsi": r.Rsi, "rdi": r.Rdi, "rsp": r.Rsp, "rbp": r.Rbp,
			"r8": r.R8, "r9": r.R9, "r10": r.R10, "r11": r.R11, "r12": r.R12, "r13": r.R13, "r14": r.R14, "r15": r.R15,
			"rip": r.Rip, "rflags": r.Eflags, "fs_base": r.Fs_base,
		},
	}
	if skip := r.Rip - c.CodeAddr; skip <= uint64(len(c.Code)) {
		f.Code = c.Code[skip:]
	}
	return f
}
