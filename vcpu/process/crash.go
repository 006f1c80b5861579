//go:build linux && amd64

package process

import (
	"encoding/binary"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit says how a guest ended: with a code, or by a signal.
type Exit struct {
	Code   int            // exit code, 0 to 255, when Signal is 0
	Signal syscall.Signal // the fatal signal, or 0
	Killed bool           // by Kill, Abort or Close
	Crash  *Crash         // the guest's state at a fatal signal; nil when it was not traced or was killed
	// Threads are the states of all threads, after Abort.
	Threads []*Crash
	// Data is how much writable private memory the guest had when it ended with a code other than 0, by a fatal signal that was traced, or by Abort, in
	// bytes; see Config.MemoryBytes. The host's kernel tells nobody that it has refused some. 0: not known.
	Data uint64
}

// Near reports whether the guest had come so near to its bound of memory when it ended that it may have been refused more: within a sixteenth of it, or
// what a Go program asks for at a time.
func (e *Exit) Near(memoryBytes uint64) bool {
	const piece = 8 << 20
	bound := memoryBytes + MemorySlack
	return memoryBytes != 0 && e.Data+max(bound/16, piece) >= bound
}

// Crash is a thread's state at the moment of a fatal signal, or at Abort.
type Crash struct {
	TID    int   // in the supervisor's namespace
	SICode int32 // si_code (sigaction(2)): above 0 for a fault, 0 or below when somebody sent the signal
	Addr   uint64
	Regs   unix.PtraceRegs
	// Code are the bytes at CodeAddr; the instruction at Regs.Rip begins codeBefore bytes in, or at 0 when
	// nothing is mapped before it. Empty when Rip points nowhere.
	Code     []byte
	CodeAddr uint64
	// Stack are the bytes at Regs.Rsp.
	Stack []byte
	// Frames are the return addresses along the frame-pointer chain, innermost first, without Rip itself.
	Frames []uint64
}

// data returns how much writable private memory the guest has, in bytes: what RLIMIT_DATA bounds. 0 when it cannot be known.
func (g *Guest) data() uint64 {
	kib, _ := g.statusNumber("VmData:", 10)
	return kib << 10
}

const (
	codeBefore = 32
	codeAfter  = 64
	stackDump  = 512
	maxFrames  = 64
)

// crash records the state of a thread with a fatal signal, and ends the guest: as the first process of its
// namespace it would otherwise survive its own signals.
func (g *Guest) crash(tid int, sig unix.Signal, info *siginfo) {
	report := &Crash{TID: tid, SICode: info.Code}
	if info.Code > 0 {
		report.Addr = info.addr()
	}
	if unix.PtraceGetRegs(tid, &report.Regs) != nil {
		report = nil // SIGKILL got there first
	} else {
		g.snapshot(report)
	}
	data := g.data()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.exit.Signal == 0 && !g.killed {
		g.exit = Exit{Signal: sig, Crash: report, Data: data}
	}
	g.kill()
}

// recordThread records a thread that stopped because of Abort, and ends the guest when it was the last.
func (g *Guest) recordThread(tid int) {
	g.mu.Lock()
	aborting := g.aborting
	g.mu.Unlock()
	report := &Crash{TID: tid}
	if !aborting || unix.PtraceGetRegs(tid, &report.Regs) != nil {
		return
	}
	g.snapshot(report)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.exit.Threads = append(g.exit.Threads, report)
	if len(g.exit.Threads) >= g.threads {
		g.kill()
	}
}

// snapshot reads the memory around the registers; what cannot be read is left out.
func (g *Guest) snapshot(r *Crash) {
	code := make([]byte, codeBefore+codeAfter)
	r.CodeAddr = r.Regs.Rip - codeBefore
	n, _ := g.ReadMem(r.CodeAddr, code)
	if n <= codeBefore {
		r.CodeAddr = r.Regs.Rip
		n, _ = g.ReadMem(r.CodeAddr, code[:codeAfter])
	}
	r.Code = code[:n]
	stack := make([]byte, stackDump)
	n, _ = g.ReadMem(r.Regs.Rsp, stack)
	r.Stack = stack[:n]

	for fp := r.Regs.Rbp; len(r.Frames) < maxFrames; {
		var pair [16]byte // the caller's frame pointer, the return address
		if n, _ := g.ReadMem(fp, pair[:]); n < len(pair) {
			return
		}
		next, ret := binary.LittleEndian.Uint64(pair[:8]), binary.LittleEndian.Uint64(pair[8:])
		if ret == 0 {
			return
		}
		r.Frames = append(r.Frames, ret)
		if next <= fp { // stacks grow down, so callers lie above; anything else is garbage or a loop
			return
		}
		fp = next
	}
}
