//go:build linux && amd64

package process

import (
	"encoding/binary"
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
	memory   []limit
}

func prepare(s *childSpec, memory []limit) (*image, error) {
	if len(s.Filter) == 0 || len(s.Argv) == 0 {
		return nil, fmt.Errorf("specification without filter or arguments")
	}
	im := &image{filter: s.Filter, empty: new(byte), killable: s.Killable, memory: memory,
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
	word     [len(ready)]byte
	rights   []byte
	iov      unix.Iovec
	msg      unix.Msghdr
}

// startSender returns once the sender's thread exists and runs; from then on it needs no scheduler.
func startSender() *sender {
	s := &sender{rights: unix.UnixRights(0)}
	copy(s.word[:], ready)
	s.iov = unix.Iovec{Base: &s.word[0], Len: uint64(len(s.word))}
	s.msg = unix.Msghdr{Iov: &s.iov, Iovlen: 1, Control: &s.rights[0], Controllen: uint64(len(s.rights))}
	go func() {
		runtime.LockOSThread()
		s.running.Store(true)
		// Safe: all of s outlives the calls, being the kernel's alone meanwhile. Raw and without allocation, since there may
		// be no memory left to have.
		for s.listener.Load() == 0 {
			unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.listener)), futexWaitPrivate, 0, 0, 0, 0)
		}
		binary.NativeEndian.PutUint32(s.rights[unix.CmsgLen(0):], s.listener.Load()-1)
		unix.RawSyscall(unix.SYS_SENDMSG, childSocket, uintptr(unsafe.Pointer(&s.msg)), 0) // an error ends without a message
		for {
			unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
		}
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
	// The limits of memory may be lower than what this runtime has already, so from here on it must not want more.
	for i := range im.memory {
		v := unix.Rlimit{Cur: im.memory[i].Value, Max: im.memory[i].Value}
		if _, _, errno := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(im.memory[i].Resource), uintptr(unsafe.Pointer(&v)), 0, 0, 0); errno != 0 {
			return fmt.Errorf("setting resource limit %d to %d: %w", im.memory[i].Resource, v.Max, errno)
		}
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
