package sys

import (
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/mm"
	"github.com/grailos/grail/hv/vfs"
	"github.com/grailos/grail/vcpu/kvm"
)

// thread is one guest thread: a vCPU, and the host thread that runs it.
type thread struct {
	g    *Guest
	tid  int
	cpu  *kvm.VCPU
	call vfs.Call

	// Signals. Guarded by g.signals.mu.
	mask     uint64
	wanted   uint64 // waited for in rt_sigtimedwait
	pending  uint64
	infos    map[int]siginfo
	altStack sigStack
	// restoreMask is the mask to return to once a signal has ended rt_sigsuspend.
	restoreMask *uint64

	clearTID uint64 // address to clear and wake when the thread ends
	name     [16]byte

	parked  parker
	polling atomic.Bool
	kickFD  int // eventfd that ends a poll; made on first use
	kickMu  sync.Mutex

	fault atomic.Pointer[strike] // to be made before the thread goes on, or nil

	// Where the thread stood at its last exit; see Guest.inUse.
	stack, tls atomic.Uint64

	current  uint64 // number of the system call being served
	finished bool   // by exit(2)
}

// firstTID is the number of the guest's first thread.
const firstTID = 1

// newThread makes a thread that does not run yet. Errors: unix.EAGAIN when there are too many.
func (g *Guest) newThread() (*thread, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.end != nil || len(g.threads) >= g.cfg.MaxThreads {
		return nil, unix.EAGAIN
	}
	cpu, err := g.machine.Acquire()
	if err != nil {
		return nil, err
	}
	g.lastTID++
	t := &thread{g: g, tid: g.lastTID, cpu: cpu, kickFD: -1, current: noCall, infos: make(map[int]siginfo)}
	t.parked.word.Store(awake)
	t.call = vfs.Call{Mem: memory{g.space}, Wait: t, Thread: t.tid, Mask: t.swapMask}
	g.threads[t.tid] = t
	g.gone.Add(1)
	return t, nil
}

// startThread runs t on a host thread of its own. fpu is the FPU state to begin with, nil the initial one.
func (g *Guest) startThread(t *thread, fpu []byte) {
	go func() {
		// A vCPU belongs to one host thread while it runs, and Kick signals that thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if t.tid == firstTID {
			t.g.leader.Store(int64(unix.Gettid()))
		}
		debug.SetPanicOnFault(true) // see mm.Space: guest memory may be a file that shrinks
		if err := t.cpu.SetFPU(fpu); err != nil {
			g.finish(End{Cause: hv.CauseEngine, Message: err.Error()})
		} else {
			t.cpu.Restore()
			t.stack.Store(t.cpu.Regs().RSP)
			t.tls.Store(t.cpu.FSBase())
			t.loop()
		}
		t.leave()
	}()
}

// leave takes the thread out of the guest.
func (t *thread) leave() {
	g := t.g
	if t.finished && t.clearTID != 0 {
		var zero [4]byte
		if g.space.CopyOut(t.clearTID, zero[:]) == nil {
			g.futexes.wake(t.clearTID, 1, ^uint32(0))
		}
	}
	g.mu.Lock()
	delete(g.threads, t.tid)
	g.mu.Unlock()
	t.kickMu.Lock()
	if t.kickFD >= 0 {
		unix.Close(t.kickFD)
		t.kickFD = -1
	}
	t.kickMu.Unlock()
	g.machine.Release(t.cpu)
	g.gone.Done()
}

// loop runs the thread until it or the guest ends.
func (t *thread) loop() {
	g := t.g
	for !t.finished {
		if !t.prepare() {
			return
		}
		e, err := t.cpu.Run()
		g.exits.Add(1)
		t.stack.Store(t.cpu.Regs().RSP)
		if err != nil {
			g.finish(End{Cause: hv.CauseEngine, Message: err.Error()})
			return
		}
		switch e.Kind {
		case kvm.ExitSyscall:
			g.calls.Add(1)
			t.syscall()
		case kvm.ExitException:
			t.exception(e)
		case kvm.ExitKicked:
			t.recordIfStopped()
		case kvm.ExitNoMemory:
			t.busError()
		case kvm.ExitFailed:
			t.record(&hv.Fault{Vector: -1})
			g.finish(End{Cause: hv.CauseEngine, Message: e.Reason})
			return
		}
	}
}

// prepare gets the thread ready to enter the guest: signals are delivered. False means that the guest ends.
func (t *thread) prepare() bool {
	// First forgotten, then looked for: a kick that comes in between stops the Run at once.
	t.cpu.Unkick()
	if t.g.throttle.closed.Load() {
		t.g.throttle.wait()
	}
	if t.g.ending() || !t.deliver() {
		return false
	}
	if t.fault.Load() != nil && t.struck() { // a fault may leave signals to be delivered
		return t.deliver()
	}
	return true
}

// exception serves a fault, or turns it into a signal.
func (t *thread) exception(e kvm.Exit) {
	if e.Vector == amd64.VectorPageFault {
		t.g.faults.Add(1)
		access := mm.Read
		switch {
		case e.Error&amd64.FaultFetch != 0:
			access = mm.Exec
		case e.Error&amd64.FaultWrite != 0:
			access = mm.Write
		}
		err := t.g.space.Fault(e.Addr, access)
		if err == nil {
			return
		}
		t.trap(e, err)
		return
	}
	t.trap(e, nil)
}

// interrupt makes the thread look for signals and for the guest's end, wherever it is. It may be called from any
// thread.
func (t *thread) interrupt() {
	t.cpu.Kick()
	t.parked.interrupt()
	if t.polling.Load() { // pairs with the store in Poll: either sees the other
		t.kickMu.Lock()
		if t.kickFD >= 0 {
			one := [8]byte{1}
			unix.Write(t.kickFD, one[:])
		}
		t.kickMu.Unlock()
	}
}

// memory is the guest's memory as vfs sees it.
type memory struct{ *mm.Space }

// Segments implements vfs.Mem.
func (m memory) Segments(addr, n uint64, write bool, dst [][]byte) ([][]byte, func(), bool, error) {
	segs, release, err := m.Space.Segments(addr, n, write, dst)
	return segs, release, true, err
}
