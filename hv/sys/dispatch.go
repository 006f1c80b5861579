package sys

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/mm"
)

// errNoReturn says that a call has set the registers itself.
var errNoReturn = errors.New("sys: no return value")

// syscall serves the system call that the thread has just made.
func (t *thread) syscall() {
	r := t.cpu.Regs()
	nr := r.RAX
	if nr < uint64(len(t.g.byNumber)) {
		t.g.byNumber[nr].Add(1)
	}
	a := [6]uint64{r.RDI, r.RSI, r.RDX, r.R10, r.R8, r.R9}
	var ret uint64
	var err error
	if f := t.g.cfg.Table.Faults.Calls.Load(); f != nil {
		ret, err = t.serveFaulty(f, nr, a)
	} else {
		ret, err = t.serve(nr, a)
	}
	switch {
	case err == nil:
		r.RAX = ret
	case err == errNoReturn:
	default:
		e := t.errno(err)
		r.RAX = uint64(-int64(e))
		if e == unix.EINTR && restartable(nr, a) {
			t.current = nr
		}
	}
}

// errno turns an error of the lower layers into Linux's number. A guest out of memory ends here.
func (t *thread) errno(err error) unix.Errno {
	var e unix.Errno
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, mm.ErrNoMemory):
		t.g.finish(t.g.memoryEnd())
		return unix.ENOMEM
	case errors.Is(err, mm.ErrFault), errors.Is(err, mm.ErrUnmapped), errors.Is(err, mm.ErrDenied), errors.Is(err, mm.ErrTaken):
		return unix.EFAULT
	}
	return unix.EIO
}

func (g *Guest) memoryEnd() End {
	u := g.space.Usage()
	if u.Bound < u.Size {
		return End{Cause: hv.CauseMemory, Message: fmt.Sprintf("the guest used up the %s that were left to it of its memory of %s, after it was asked for the rest", mebibytes(u.Bound), mebibytes(u.Size))}
	}
	return End{Cause: hv.CauseMemory, Message: "the guest used up its memory of " + mebibytes(u.Size)}
}

// restartable reports whether Linux makes the call again after a handler with SA_RESTART (signal(7)).
func restartable(nr uint64, a [6]uint64) bool {
	switch nr {
	case unix.SYS_READ, unix.SYS_READV, unix.SYS_WRITE, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64,
		unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_OPEN, unix.SYS_OPENAT, unix.SYS_IOCTL:
		return true
	case unix.SYS_FUTEX:
		return a[3] == 0 // with a timeout it would begin anew
	}
	return false
}

// serve performs one system call.
func (t *thread) serve(nr uint64, a [6]uint64) (uint64, error) {
	g := t.g
	switch nr {
	// Threads.
	case unix.SYS_CLONE:
		return t.clone(a)
	case unix.SYS_FUTEX:
		return t.futex(a)
	case unix.SYS_EXIT:
		t.finished = true
		t.g.lastExit(t, int(uint8(a[0])))
		return 0, errNoReturn
	case unix.SYS_EXIT_GROUP:
		g.finish(g.exitEnd(int(uint8(a[0]))))
		return 0, errNoReturn
	case unix.SYS_SET_TID_ADDRESS:
		t.clearTID = a[0]
		return uint64(t.tid), nil
	case unix.SYS_GETTID:
		return uint64(t.tid), nil
	case unix.SYS_SET_ROBUST_LIST, unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SETPRIORITY:
		return 0, nil
	case unix.SYS_SCHED_YIELD:
		unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		return 0, nil
	case unix.SYS_SCHED_GETAFFINITY:
		return t.schedGetaffinity(a)
	case unix.SYS_ARCH_PRCTL:
		return t.archPrctl(a)

	// Memory.
	case unix.SYS_MMAP:
		return t.mmap(a)
	case unix.SYS_MUNMAP:
		return 0, g.space.Unmap(a[0], a[1])
	case unix.SYS_MPROTECT:
		return t.mprotect(a)
	case unix.SYS_MADVISE:
		return t.madvise(a)
	case unix.SYS_MREMAP:
		return t.mremap(a)
	case unix.SYS_BRK:
		return g.space.Break(a[0]), nil
	case unix.SYS_MLOCK, unix.SYS_MUNLOCK, unix.SYS_MSYNC, unix.SYS_MLOCKALL, unix.SYS_MUNLOCKALL:
		return 0, nil // guest memory is never swapped by the guest, and has nothing to be written back to
	case unix.SYS_MINCORE:
		return t.mincore(a)
	case abi.SysReclaim:
		if a[0] == abi.ReclaimTaken {
			g.lost.Store(0)
		}
		return g.orders.syscall(t.call.Mem, t, a, g.space.Taken)

	// Signals.
	case unix.SYS_RT_SIGACTION:
		return t.rtSigaction(a)
	case unix.SYS_RT_SIGPROCMASK:
		return t.rtSigprocmask(a)
	case unix.SYS_RT_SIGPENDING:
		return t.rtSigpending(a)
	case unix.SYS_RT_SIGSUSPEND:
		return t.rtSigsuspend(a)
	case unix.SYS_RT_SIGTIMEDWAIT:
		return t.rtSigtimedwait(a)
	case unix.SYS_RT_SIGQUEUEINFO:
		return t.rtSigqueueinfo(int32(a[0]), 0, int32(a[1]), a[2])
	case unix.SYS_RT_TGSIGQUEUEINFO:
		return t.rtSigqueueinfo(int32(a[0]), int32(a[1]), int32(a[2]), a[3])
	case unix.SYS_PAUSE:
		t.parked.arm()
		return 0, t.park(forever)
	case unix.SYS_RT_SIGRETURN:
		if err := t.rtSigreturn(); err != nil {
			t.g.finish(End{Cause: hv.CauseSignal, Signal: int(unix.SIGSEGV), Message: "bad signal frame"})
		}
		return 0, errNoReturn
	case unix.SYS_SIGALTSTACK:
		return t.sigaltstack(a)
	case unix.SYS_KILL:
		return t.kill(max(int32(a[0]), 0), 0, int32(a[1]), 0)
	case unix.SYS_TKILL:
		return t.kill(1, int32(a[0]), int32(a[1]), siTkill)
	case unix.SYS_TGKILL:
		return t.kill(int32(a[0]), int32(a[1]), int32(a[2]), siTkill)

	// Time.
	case unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY, unix.SYS_TIME, unix.SYS_TIMES:
		return t.readClock(nr, a)
	case unix.SYS_NANOSLEEP:
		return t.sleep(unix.CLOCK_MONOTONIC, false, a[0], a[1])
	case unix.SYS_CLOCK_NANOSLEEP:
		return t.sleep(int32(a[0]), a[1]&1 != 0, a[2], a[3])
	case unix.SYS_SETITIMER, unix.SYS_GETITIMER, unix.SYS_ALARM, unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME,
		unix.SYS_TIMER_GETTIME, unix.SYS_TIMER_DELETE, unix.SYS_TIMER_GETOVERRUN:
		return t.timerCall(nr, a)
	}
	if ret, err, ok := t.identity(nr, a); ok {
		return ret, err
	}
	ret, errno, known := g.cfg.Table.Syscall(&t.call, nr, a)
	if !known {
		g.deny(nr)
		return 0, unix.ENOSYS
	}
	if errno == unix.EPIPE {
		g.signals.send(t, siginfo{signo: int(unix.SIGPIPE)})
	}
	if errno != 0 {
		return 0, errno
	}
	return ret, nil
}

// load64 reads a word of guest memory.
func (t *thread) load64(addr uint64) (uint64, error) {
	var b [8]byte
	err := t.g.space.CopyIn(addr, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

// store64 writes consecutive words to guest memory.
func (t *thread) store64(addr uint64, words ...uint64) error {
	var b [64]byte
	for i, w := range words {
		binary.LittleEndian.PutUint64(b[8*i:], w)
	}
	return t.g.space.CopyOut(addr, b[:8*len(words)])
}

func (t *thread) store32(addr uint64, v uint32) error {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	return t.g.space.CopyOut(addr, b[:])
}
