package sys

import (
	"crypto/rand"
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// Limits that the guest is told.
const (
	openFiles = 4096
	stackSize = 8 << 20
)

// identity serves the calls by which a program asks who and where it is. ok is false for any other call.
func (t *thread) identity(nr uint64, a [6]uint64) (ret uint64, err error, ok bool) {
	switch nr {
	case unix.SYS_GETPID, unix.SYS_GETPGRP, unix.SYS_GETPGID, unix.SYS_GETSID, unix.SYS_SETSID:
		return 1, nil, true
	case unix.SYS_GETPPID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_SETPGID:
		return 0, nil, true
	case unix.SYS_GETGROUPS:
		return 0, nil, true
	case unix.SYS_GETRESUID, unix.SYS_GETRESGID:
		for _, addr := range a[:3] {
			if err := t.store32(addr, 0); err != nil {
				return 0, err, true
			}
		}
		return 0, nil, true
	case unix.SYS_UNAME:
		return 0, t.g.space.CopyOut(a[0], utsname()), true
	case unix.SYS_GETRANDOM:
		ret, err := t.getrandom(a)
		return ret, err, true
	case unix.SYS_PRLIMIT64:
		if int32(a[0]) > 1 {
			return 0, unix.ESRCH, true
		}
		if a[3] == 0 {
			return 0, nil, true
		}
		return 0, t.g.space.CopyOut(a[3], rlimit(a[1], t.g.cfg.MaxThreads)), true
	case unix.SYS_GETRLIMIT:
		return 0, t.g.space.CopyOut(a[1], rlimit(a[0], t.g.cfg.MaxThreads)), true
	case unix.SYS_SETRLIMIT:
		return 0, nil, true
	case unix.SYS_GETCPU:
		for _, addr := range a[:2] {
			if addr != 0 {
				if err := t.store32(addr, 0); err != nil {
					return 0, err, true
				}
			}
		}
		return 0, nil, true
	case unix.SYS_SYSINFO:
		return 0, t.sysinfo(a[0]), true
	case unix.SYS_GETRUSAGE:
		return 0, t.getrusage(a[1]), true
	case unix.SYS_PRCTL:
		ret, err := t.prctl(a)
		return ret, err, true
	case unix.SYS_GETPRIORITY:
		return 20, nil, true
	}
	return 0, nil, false
}

// utsname names the system that the guest sees. The release is that of the Linux whose calls are served.
func utsname() []byte {
	b := make([]byte, 6*65)
	for i, s := range []string{"Linux", "grail", "6.1.0-grail", "#1 Grail", "x86_64", "(none)"} {
		copy(b[65*i:], s)
	}
	return b
}

// maxRandom bounds one getrandom; more is a short read, as Linux allows itself.
const maxRandom = 64 << 10

func (t *thread) getrandom(a [6]uint64) (uint64, error) {
	n := min(a[1], maxRandom)
	b := make([]byte, n)
	rand.Read(b)
	return n, t.g.space.CopyOut(a[0], b)
}

// rlimit is the struct rlimit that the guest is told.
func rlimit(resource uint64, threads int) []byte {
	limit := ^uint64(0)
	switch resource {
	case unix.RLIMIT_NOFILE:
		limit = openFiles
	case unix.RLIMIT_STACK:
		limit = stackSize
	case unix.RLIMIT_NPROC:
		limit = uint64(threads)
	case unix.RLIMIT_CORE:
		limit = 0
	}
	b := binary.LittleEndian.AppendUint64(nil, limit)
	return binary.LittleEndian.AppendUint64(b, limit)
}

func (t *thread) sysinfo(addr uint64) error {
	var b [112]byte
	le := binary.LittleEndian
	u := t.g.space.Usage()
	le.PutUint64(b[0:], uint64(now(unix.CLOCK_MONOTONIC)/time.Second))
	le.PutUint64(b[32:], u.Size)
	le.PutUint64(b[40:], u.Bound-min(u.Used, u.Bound))
	le.PutUint16(b[80:], 1)
	le.PutUint32(b[104:], 1)
	return t.g.space.CopyOut(addr, b[:])
}

func (t *thread) getrusage(addr uint64) error {
	var b [144]byte
	cpu := now(unix.CLOCK_PROCESS_CPUTIME_ID)
	binary.LittleEndian.PutUint64(b[0:], uint64(cpu/time.Second))
	binary.LittleEndian.PutUint64(b[8:], uint64(cpu%time.Second/time.Microsecond))
	binary.LittleEndian.PutUint64(b[32:], t.g.space.Used()>>10)
	return t.g.space.CopyOut(addr, b[:])
}

// prctl knows the thread's name only.
func (t *thread) prctl(a [6]uint64) (uint64, error) {
	switch a[0] {
	case unix.PR_SET_NAME:
		var b [16]byte
		for i := range b[:15] {
			if err := t.g.space.CopyIn(a[1]+uint64(i), b[i:i+1]); err != nil {
				return 0, err
			}
			if b[i] == 0 {
				break
			}
		}
		t.name = b
		return 0, nil
	case unix.PR_GET_NAME:
		return 0, t.g.space.CopyOut(a[1], t.name[:])
	}
	return 0, unix.EINVAL
}
