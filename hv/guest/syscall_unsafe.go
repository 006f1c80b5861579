package guest

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
)

// The structures that cross the system-call boundary must have exactly their wire size.
var (
	_ [abi.DevReqSize]byte = [unsafe.Sizeof(abi.DevReq{})]byte{}
	_ [abi.DevSegSize]byte = [unsafe.Sizeof(abi.DevSeg{})]byte{}
	_ [abi.OrderSize]byte  = [unsafe.Sizeof(abi.Order{})]byte{}
	_ [abi.RangeSize]byte  = [unsafe.Sizeof(abi.Range{})]byte{}
)

// sysCaps fills b with the capability table and returns the size of the whole table.
func sysCaps(b []byte) (int, error) {
	// Safe: the host writes at most len(b) bytes, and b stays alive during the call.
	n, _, errno := syscall.Syscall(abi.SysCaps, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// DevIO performs a batch of device requests in one exit; see abi.SysDevIO. It returns when all are done, with
// each request's own outcome in its Result. Preconditions: at most abi.MaxDevBatch requests; everything that
// reqs points to stays reachable (see SegmentsOf). It does not allocate. Errors: EFAULT, EINVAL, and ENOSYS
// outside a Grail VM.
func DevIO(reqs []abi.DevReq) (int, error) {
	if len(reqs) == 0 {
		return 0, nil
	}
	// Safe: reqs is an array of the wire structure and stays alive during the call; the host writes only
	// the Result fields. The addresses inside are integers that the host checks against guest memory.
	n, _, errno := syscall.Syscall(abi.SysDevIO, uintptr(unsafe.Pointer(unsafe.SliceData(reqs))), uintptr(len(reqs)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// DevIOAlone is DevIO without telling the Go scheduler, which otherwise wakes other threads to use the processor
// meanwhile: several exits more for each call. It is for drivers whose work is all one goroutine's. The
// collector cannot run until it returns.
func DevIOAlone(reqs []abi.DevReq) (int, error) {
	if len(reqs) == 0 {
		return 0, nil
	}
	// Safe: as in DevIO.
	n, _, errno := syscall.RawSyscall(abi.SysDevIO, uintptr(unsafe.Pointer(unsafe.SliceData(reqs))), uintptr(len(reqs)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Wait is a ring.PollerConfig.Poll by abi.SysWait: one exit to wait and to drain.
func Wait(fds []unix.PollFd, timeout time.Duration) (int, error) {
	// Safe: the host reads and writes len(fds) structures, and fds stays alive during the call.
	n, _, errno := syscall.Syscall(abi.SysWait, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(timeout))
	return waited(n, errno)
}

// WaitAlone is Wait as DevIOAlone is DevIO.
func WaitAlone(fds []unix.PollFd, timeout time.Duration) (int, error) {
	// Safe: as in Wait.
	n, _, errno := syscall.RawSyscall(abi.SysWait, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(timeout))
	return waited(n, errno)
}

func waited(n uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// pollHook returns Wait inside a Grail VM, and nil elsewhere, where tests run.
func pollHook() func([]unix.PollFd, time.Duration) (int, error) {
	if _, err := sysCaps(nil); err != nil {
		return nil
	}
	return Wait
}

// Segment returns the wire form of b. Precondition: b is not Go stack memory: it is mapped memory, or part of
// a heap object that the caller keeps reachable until the request is done.
func Segment(b []byte) abi.DevSeg {
	// Safe: only the address is taken; heap objects and mappings do not move.
	return abi.DevSeg{Addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), Len: uint64(len(b))}
}

// SegmentsOf returns the address of segs for abi.DevReq.Segs, with the same precondition as Segment.
func SegmentsOf(segs []abi.DevSeg) uint64 {
	// Safe: as in Segment.
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(segs))))
}

// sysReclaim performs an operation of abi.SysReclaim that does not wait, with a list for ReclaimTaken or two numbers.
func sysReclaim(op uintptr, list []abi.Range, id, more uint64) (int, error) {
	a, n := uintptr(id), uintptr(more)
	if list != nil {
		a, n = uintptr(unsafe.Pointer(unsafe.SliceData(list))), uintptr(len(list))
	}
	// Safe: the host writes at most len(list) ranges, and list stays alive during the call.
	r, _, errno := syscall.Syscall(abi.SysReclaim, op, a, n)
	runtime.KeepAlive(list)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// awaitOrder waits for another order than the known one.
func awaitOrder(o *abi.Order, known uint64) error {
	// Safe: the host writes one Order, whose size is checked above, and o stays alive during the call.
	_, _, errno := syscall.Syscall(abi.SysReclaim, abi.ReclaimWait, uintptr(unsafe.Pointer(o)), uintptr(known))
	if errno != 0 {
		return errno
	}
	return nil
}

// reclaimDone returns how much is still to be given for an order, and says whether it can be.
func reclaimDone(id uint64, final bool) (left uint64, err error) {
	more := uint64(0)
	if final {
		more = 1
	}
	n, err := sysReclaim(abi.ReclaimDone, nil, id, more)
	return uint64(n), err
}
