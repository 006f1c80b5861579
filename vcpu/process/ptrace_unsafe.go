//go:build linux && amd64

package process

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfo is the head of siginfo_t (asm-generic/siginfo.h), 128 bytes in all.
type siginfo struct {
	Signo, Errno, Code, _ int32
	Fields                [112]byte
}

// addr is si_addr, valid for faults.
func (s *siginfo) addr() uint64 { return *(*uint64)(unsafe.Pointer(&s.Fields[0])) }

// pid is si_pid, valid when a process sent the signal.
func (s *siginfo) pid() int32 { return *(*int32)(unsafe.Pointer(&s.Fields[0])) }

// ptrace makes one request whose data is a plain number.
func ptrace(req, tid int, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), 0, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// ptraceInfo makes one request whose data is a siginfo. Safe: the kernel copies 128 bytes, its exact size.
func ptraceInfo(req, tid int, info *siginfo) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), 0, uintptr(unsafe.Pointer(info)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func ptraceSeize(pid, options int) error { return ptrace(unix.PTRACE_SEIZE, pid, uintptr(options)) }

func ptraceListen(tid int) error { return ptrace(unix.PTRACE_LISTEN, tid, 0) }

func ptraceCont(tid int, sig unix.Signal) error { return ptrace(unix.PTRACE_CONT, tid, uintptr(sig)) }
