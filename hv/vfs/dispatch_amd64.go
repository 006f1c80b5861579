package vfs

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
)

// cwdArg is AT_FDCWD as a system-call argument.
const cwdArg = uint64(uint32(0xffffff9c))

// Syscall serves one system call of a guest thread, by its Linux amd64 number or Grail's own. known is false when the
// call is none of this package's; nothing has happened then. A write that fails with EPIPE owes the thread a
// SIGPIPE, which is the caller's to raise, as is restarting a call that returned EINTR.
func (t *Table) Syscall(c *Call, nr uint64, a [6]uint64) (ret uint64, errno unix.Errno, known bool) {
	ret, errno, known = t.dispatch(c, nr, a)
	if errno != 0 {
		ret = 0
	}
	return ret, errno, known
}

func (t *Table) dispatch(c *Call, nr uint64, a [6]uint64) (ret uint64, errno unix.Errno, known bool) {
	known = true
	switch nr {
	case unix.SYS_READ:
		ret, errno = t.sysRW(c, a[0], a[1], a[2], -1, true)
	case unix.SYS_WRITE:
		ret, errno = t.sysRW(c, a[0], a[1], a[2], -1, false)
	case unix.SYS_READV:
		ret, errno = t.sysRWV(c, a[0], a[1], a[2], -1, true)
	case unix.SYS_WRITEV:
		ret, errno = t.sysRWV(c, a[0], a[1], a[2], -1, false)
	case unix.SYS_PREAD64:
		ret, errno = t.sysPRW(c, a[0], a[1], a[2], a[3], true)
	case unix.SYS_PWRITE64:
		ret, errno = t.sysPRW(c, a[0], a[1], a[2], a[3], false)
	case unix.SYS_PREADV: // the offset's halves: the lower is the whole on a 64-bit machine
		ret, errno = t.sysPRWV(c, a[0], a[1], a[2], a[3], true)
	case unix.SYS_PWRITEV:
		ret, errno = t.sysPRWV(c, a[0], a[1], a[2], a[3], false)
	case unix.SYS_PREADV2:
		ret, errno = t.sysPRWV2(c, a[0], a[1], a[2], a[3], a[5], true)
	case unix.SYS_PWRITEV2:
		ret, errno = t.sysPRWV2(c, a[0], a[1], a[2], a[3], a[5], false)
	case unix.SYS_LSEEK:
		ret, errno = t.sysLseek(a[0], a[1], a[2])
	case unix.SYS_SENDFILE:
		ret, errno = t.sysSendfile(c, a[0], a[1], a[2], a[3])
	case unix.SYS_COPY_FILE_RANGE:
		if uint32(a[5]) != 0 {
			return 0, unix.EINVAL, true
		}
		ret, errno = t.copyFiles(c, a[0], a[1], a[2], a[3], a[4])
	case unix.SYS_SPLICE, unix.SYS_TEE, unix.SYS_VMSPLICE:
		errno = unix.EINVAL // as for files that cannot be spliced: callers fall back
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		ret, errno = t.sysSync(a[0])
	case unix.SYS_SYNC:
	case unix.SYS_FTRUNCATE:
		ret, errno = t.sysFtruncate(a[0], a[1])
	case unix.SYS_FALLOCATE:
		ret, errno = t.sysFallocate(a[0], a[1], a[2], a[3])
	case unix.SYS_FADVISE64:
		errno = t.check(a[0])
	case unix.SYS_FLOCK:
		errno = t.check(a[0]) // the guest is one process: it never meets a foreign lock

	case unix.SYS_CLOSE:
		ret, errno = t.sysClose(a[0])
	case unix.SYS_CLOSE_RANGE:
		ret, errno = t.sysCloseRange(a[0], a[1], a[2])
	case unix.SYS_DUP:
		ret, errno = t.sysDup(a[0], 0, false)
	case unix.SYS_DUP2:
		ret, errno = t.sysDup2(a[0], a[1])
	case unix.SYS_DUP3:
		ret, errno = t.sysDup3(a[0], a[1], a[2])
	case unix.SYS_FCNTL:
		ret, errno = t.sysFcntl(c, a[0], a[1], a[2])
	case unix.SYS_IOCTL:
		ret, errno = t.sysIoctl(c, a[0], a[1], a[2])
	case unix.SYS_PIPE:
		ret, errno = t.sysPipe(c, a[0], 0)
	case unix.SYS_PIPE2:
		ret, errno = t.sysPipe(c, a[0], a[1])
	case unix.SYS_EVENTFD:
		ret, errno = t.sysEventfd(a[0], 0)
	case unix.SYS_EVENTFD2:
		ret, errno = t.sysEventfd(a[0], a[1])

	case unix.SYS_EPOLL_CREATE:
		if int32(a[0]) <= 0 {
			return 0, unix.EINVAL, true
		}
		ret, errno = t.sysEpollCreate(0)
	case unix.SYS_EPOLL_CREATE1:
		ret, errno = t.sysEpollCreate(a[0])
	case unix.SYS_EPOLL_CTL:
		ret, errno = t.sysEpollCtl(c, a[0], a[1], a[2], a[3])
	case unix.SYS_EPOLL_WAIT:
		ret, errno = t.sysEpollWait(c, a[0], a[1], a[2], ms(a[3]))
	case unix.SYS_EPOLL_PWAIT:
		ret, errno = t.sysEpollPwait(c, a)
	case unix.SYS_EPOLL_PWAIT2:
		ret, errno = t.sysEpollPwait2(c, a)
	case unix.SYS_POLL:
		ret, errno = t.sysPoll(c, a[0], a[1], ms(a[2]))
	case unix.SYS_PPOLL:
		ret, errno = t.sysPpoll(c, a[0], a[1], a[2], a[3], a[4])
	case unix.SYS_SELECT:
		ret, errno = t.sysSelectTimeval(c, a)
	case unix.SYS_PSELECT6:
		ret, errno = t.sysPselect6(c, a)

	case abi.SysCaps:
		ret, errno = t.sysCaps(c, a[0], a[1])
	case abi.SysWait:
		ret, errno = t.poll(c, a[0], a[1], time.Duration(a[2]), true)
	case abi.SysDevIO:
		ret, errno = t.sysDevIO(c, a[0], a[1])
	default:
		return t.dispatchPath(c, nr, a)
	}
	return ret, errno, known
}

// dispatchPath serves the calls that are about paths.
func (t *Table) dispatchPath(c *Call, nr uint64, a [6]uint64) (ret uint64, errno unix.Errno, known bool) {
	known = true
	switch nr {
	case unix.SYS_OPEN:
		ret, errno = t.sysOpenat(c, cwdArg, a[0], a[1], a[2])
	case unix.SYS_CREAT:
		ret, errno = t.sysOpenat(c, cwdArg, a[0], unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC, a[1])
	case unix.SYS_OPENAT:
		ret, errno = t.sysOpenat(c, a[0], a[1], a[2], a[3])
	case unix.SYS_STAT:
		ret, errno = t.sysFstatat(c, cwdArg, a[0], a[1], 0)
	case unix.SYS_LSTAT:
		ret, errno = t.sysFstatat(c, cwdArg, a[0], a[1], unix.AT_SYMLINK_NOFOLLOW)
	case unix.SYS_FSTAT:
		ret, errno = t.sysFstat(c, a[0], a[1])
	case unix.SYS_NEWFSTATAT:
		ret, errno = t.sysFstatat(c, a[0], a[1], a[2], a[3])
	case unix.SYS_STATX:
		ret, errno = t.sysStatx(c, a[0], a[1], a[2], a[3], a[4])
	case unix.SYS_STATFS:
		ret, errno = t.sysStatfs(c, a[0], a[1])
	case unix.SYS_FSTATFS:
		ret, errno = t.sysFstatfs(c, a[0], a[1])
	case unix.SYS_ACCESS:
		ret, errno = t.sysAccess(c, cwdArg, a[0], a[1], 0)
	case unix.SYS_FACCESSAT:
		ret, errno = t.sysAccess(c, a[0], a[1], a[2], 0)
	case unix.SYS_FACCESSAT2:
		ret, errno = t.sysAccess(c, a[0], a[1], a[2], a[3])
	case unix.SYS_GETDENTS64:
		ret, errno = t.sysGetdents(c, a[0], a[1], a[2], false)
	case unix.SYS_GETDENTS:
		ret, errno = t.sysGetdents(c, a[0], a[1], a[2], true)
	case unix.SYS_READLINK:
		ret, errno = t.sysReadlinkat(c, cwdArg, a[0], a[1], a[2])
	case unix.SYS_READLINKAT:
		ret, errno = t.sysReadlinkat(c, a[0], a[1], a[2], a[3])
	case unix.SYS_GETCWD:
		ret, errno = t.sysGetcwd(c, a[0], a[1])
	case unix.SYS_CHDIR:
		ret, errno = t.sysChdir(c, a[0])
	case unix.SYS_FCHDIR:
		ret, errno = t.sysFchdir(a[0])
	case unix.SYS_MKDIR:
		ret, errno = t.sysMkdirat(c, cwdArg, a[0], a[1])
	case unix.SYS_MKDIRAT:
		ret, errno = t.sysMkdirat(c, a[0], a[1], a[2])
	case unix.SYS_RMDIR:
		ret, errno = t.sysUnlinkat(c, cwdArg, a[0], unix.AT_REMOVEDIR)
	case unix.SYS_UNLINK:
		ret, errno = t.sysUnlinkat(c, cwdArg, a[0], 0)
	case unix.SYS_UNLINKAT:
		ret, errno = t.sysUnlinkat(c, a[0], a[1], a[2])
	case unix.SYS_RENAME:
		ret, errno = t.sysRenameat2(c, cwdArg, a[0], cwdArg, a[1], 0)
	case unix.SYS_RENAMEAT:
		ret, errno = t.sysRenameat2(c, a[0], a[1], a[2], a[3], 0)
	case unix.SYS_RENAMEAT2:
		ret, errno = t.sysRenameat2(c, a[0], a[1], a[2], a[3], a[4])
	case unix.SYS_LINK:
		ret, errno = t.sysLinkat(c, cwdArg, a[0], cwdArg, a[1], 0)
	case unix.SYS_LINKAT:
		ret, errno = t.sysLinkat(c, a[0], a[1], a[2], a[3], a[4])
	case unix.SYS_SYMLINK:
		ret, errno = t.sysSymlinkat(c, a[0], cwdArg, a[1])
	case unix.SYS_SYMLINKAT:
		ret, errno = t.sysSymlinkat(c, a[0], a[1], a[2])
	case unix.SYS_TRUNCATE:
		ret, errno = t.sysTruncate(c, a[0], a[1])
	case unix.SYS_CHMOD:
		ret, errno = t.sysChmod(c, cwdArg, a[0], a[1], 0)
	case unix.SYS_FCHMODAT:
		ret, errno = t.sysChmod(c, a[0], a[1], a[2], 0)
	case unix.SYS_FCHMODAT2:
		ret, errno = t.sysChmod(c, a[0], a[1], a[2], a[3])
	case unix.SYS_FCHMOD:
		ret, errno = t.sysFchmod(a[0], a[1])
	case unix.SYS_CHOWN:
		ret, errno = t.sysChown(c, cwdArg, a[0], a[1], a[2], 0)
	case unix.SYS_LCHOWN:
		ret, errno = t.sysChown(c, cwdArg, a[0], a[1], a[2], unix.AT_SYMLINK_NOFOLLOW)
	case unix.SYS_FCHOWNAT:
		ret, errno = t.sysChown(c, a[0], a[1], a[2], a[3], a[4])
	case unix.SYS_FCHOWN:
		ret, errno = t.sysFchown(a[0], a[1], a[2])
	case unix.SYS_UTIMENSAT:
		ret, errno = t.sysUtimensat(c, a[0], a[1], a[2], a[3])
	case unix.SYS_UMASK:
		ret, errno = t.sysUmask(a[0])
	default:
		return 0, 0, false
	}
	return ret, errno, known
}

// check reports whether fd is open.
func (t *Table) check(fd uint64) unix.Errno {
	f, e := t.get(fd)
	if e == 0 {
		f.put()
	}
	return e
}

// HostSyscalls names the host calls that a Table may make once it is built, for the jail's allow-list. The requests of
// ioctl are HostIoctls. Mapping /tmp's memory needs mmap, munmap and madvise without PROT_EXEC.
var HostSyscalls = []string{
	"read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2",
	"close", "lseek", "fstat", "ftruncate", "fallocate", "fdatasync", "fcntl", "ioctl",
	"poll", "ppoll", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait",
	"eventfd2", "pipe2", "getrandom", "mmap", "munmap", "madvise",
}

// HostIoctls are the requests behind HostSyscalls' ioctl, all of which only ask.
var HostIoctls = []uint32{unix.TCGETS, unix.TIOCGWINSZ, unix.TIOCINQ}
