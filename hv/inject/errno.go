package inject

import (
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
)

// Errnos returns the errors that Linux could give for a system call whose arguments are right, a1 being the second; none where it never fails, or where a failure
// means something else than that nothing was done. Those of Grail's own calls are docs/abi.md's.
func Errnos(nr, a1 uint64) []unix.Errno {
	switch nr {
	case unix.SYS_READ, unix.SYS_READV, unix.SYS_PREAD64, unix.SYS_PREADV:
		return []unix.Errno{unix.EINTR, unix.EAGAIN, unix.EIO}
	case unix.SYS_WRITE, unix.SYS_WRITEV, unix.SYS_PWRITE64, unix.SYS_PWRITEV:
		return []unix.Errno{unix.EINTR, unix.EAGAIN, unix.EIO, unix.ENOSPC}
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		return []unix.Errno{unix.EIO, unix.ENOSPC}
	case unix.SYS_POLL, unix.SYS_PPOLL, unix.SYS_SELECT, unix.SYS_PSELECT6, abi.SysWait:
		return []unix.Errno{unix.EINTR, unix.ENOMEM}
	case unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_NANOSLEEP:
		return []unix.Errno{unix.EINTR}
	case unix.SYS_EPOLL_CTL, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MREMAP:
		return []unix.Errno{unix.ENOMEM}
	case unix.SYS_OPEN, unix.SYS_OPENAT, unix.SYS_EVENTFD2, unix.SYS_PIPE2, unix.SYS_EPOLL_CREATE1, unix.SYS_DUP:
		return []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOMEM}
	case unix.SYS_CLONE:
		return []unix.Errno{unix.EAGAIN, unix.ENOMEM}
	case unix.SYS_FUTEX:
		const wait, waitBitset, command = 0, 9, 127 // linux/futex.h
		if c := a1 & command; c == wait || c == waitBitset {
			return []unix.Errno{unix.EINTR, unix.EAGAIN}
		}
	case abi.SysDevIO:
		return []unix.Errno{unix.EFAULT}
	}
	return nil
}

// waitsForHost reports whether the host does something for the program in that call, beside what a program's own runtime needs.
func waitsForHost(nr uint64) bool {
	switch nr {
	case abi.SysWait, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64,
		unix.SYS_POLL, unix.SYS_PPOLL, unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		return true
	}
	return false
}
