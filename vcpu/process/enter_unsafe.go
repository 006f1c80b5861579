//go:build linux && amd64

package process

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// image is everything that the last steps of the child need, made before the filter is in place: after it,
// this thread must neither allocate nor enter the Go scheduler.
type image struct {
	filter   []bpf.RawInstruction
	prog     unix.SockFprog
	argv     []*byte
	env      []*byte
	empty    *byte
	flags    uintptr
	killable bool
}

func prepare(s *childSpec) (*image, error) {
	if len(s.Filter) == 0 || len(s.Argv) == 0 {
		return nil, fmt.Errorf("specification without filter or arguments")
	}
	im := &image{filter: s.Filter, empty: new(byte), killable: s.Killable,
		flags: unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW}
	// RawInstruction has the layout of struct sock_filter.
	im.prog = unix.SockFprog{Len: uint16(len(im.filter)), Filter: (*unix.SockFilter)(unsafe.Pointer(&im.filter[0]))}
	im.argv, im.env = pointers(s.Argv), pointers(s.Env)
	return im, nil
}

// pointers returns the NUL-terminated strings as execve takes them.
func pointers(list [][]byte) []*byte {
	out := make([]*byte, 0, len(list)+1)
	for _, s := range list {
		out = append(out, &append(s[:len(s):len(s)], 0)[0])
	}
	return append(out, nil)
}

// sender is a thread without the filter: it hands the listener to the parent, so that the filter needs no hole for that.
type sender struct {
	listener atomic.Uint32 // descriptor + 1, once there is one; a futex
	running  atomic.Bool
}

// startSender returns once the sender's thread exists and runs; from then on it needs no scheduler.
func startSender() *sender {
	s := new(sender)
	go func() {
		runtime.LockOSThread()
		s.running.Store(true)
		for s.listener.Load() == 0 {
			// Safe: the word outlives the call, and the kernel only reads it.
			unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.listener)), futexWaitPrivate, 0, 0, 0, 0)
		}
		rights := unix.UnixRights(int(s.listener.Load()) - 1)
		_ = unix.Sendmsg(childSocket, []byte(ready), rights, nil, 0) // an error is an end without a message for the parent
	}()
	for !s.running.Load() {
		runtime.Gosched()
	}
	return s
}

// linux/futex.h: FUTEX_WAIT and FUTEX_WAKE with FUTEX_PRIVATE_FLAG.
const (
	futexWaitPrivate = 0 | 128
	futexWakePrivate = 1 | 128
)

// enter installs the filter on this thread, wakes the sender and executes the program, which ends every other
// thread. It returns an error only when the filter could not be installed; when the program cannot be executed it
// tells the parent by a second, impossible execveat with the errno as its path.
func (im *image) enter(s *sender) error {
	flags := im.flags
	if im.killable {
		flags |= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	}
	// Safe, here and below: im is reachable to the end of the function, the kernel copies what it reads,
	// and the raw forms keep the scheduler from running on a thread that may no longer make threads.
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&im.prog)))
	if errno == unix.EINVAL && im.killable {
		fd, _, errno = unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, im.flags, uintptr(unsafe.Pointer(&im.prog)))
	}
	if errno != 0 {
		return fmt.Errorf("installing the seccomp filter: %w", errno)
	}
	s.listener.Store(uint32(fd) + 1)
	unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.listener)), futexWakePrivate, 1, 0, 0, 0)
	_, _, errno = unix.RawSyscall6(unix.SYS_EXECVEAT, childProgram, uintptr(unsafe.Pointer(im.empty)),
		uintptr(unsafe.Pointer(&im.argv[0])), uintptr(unsafe.Pointer(&im.env[0])), unix.AT_EMPTY_PATH, 0)
	for {
		unix.RawSyscall6(unix.SYS_EXECVEAT, ^uintptr(0), uintptr(errno), 0, 0, 0, 0)
	}
}

// setIDs makes id the user and the only group of the calling thread.
func setIDs(id int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("dropping groups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(id), uintptr(id), uintptr(id)); errno != 0 {
		return fmt.Errorf("taking on group %d: %w", id, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(id), uintptr(id), uintptr(id)); errno != 0 {
		return fmt.Errorf("taking on user %d: %w", id, errno)
	}
	return nil
}

// sigaction is the kernel's struct (asm/signal.h, x86-64).
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// defaultSignals undoes what execve would keep: ignored signals and the signal mask.
func defaultSignals() error {
	const sigSetSize = 8
	for sig := uintptr(1); sig <= 64; sig++ {
		if sig == uintptr(unix.SIGKILL) || sig == uintptr(unix.SIGSTOP) {
			continue
		}
		var sa sigaction
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&sa)), sigSetSize, 0, 0); errno != 0 {
			return errno
		}
		if sa.handler != 1 { // SIG_IGN; the Go runtime's handlers are reset by execve
			continue
		}
		sa = sigaction{}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&sa)), 0, sigSetSize, 0, 0); errno != 0 {
			return errno
		}
	}
	var none uint64
	const sigSetMask = 2
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, sigSetMask, uintptr(unsafe.Pointer(&none)), 0, sigSetSize, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
