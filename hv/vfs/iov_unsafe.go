package vfs

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hostIO is readv or writev (off < 0), or preadv or pwritev, without an allocation; one slice takes the plain call.
// The slices are reachable through segs until the call returns, and the kernel keeps no pointer.
func (c *Call) hostIO(fd int, segs [][]byte, off int64, read bool) (uint64, unix.Errno) {
	defer runtime.KeepAlive(segs)
	if len(segs) == 1 && len(segs[0]) > 0 {
		p, n := uintptr(unsafe.Pointer(&segs[0][0])), uintptr(len(segs[0]))
		var r uintptr
		var e unix.Errno
		switch {
		case read && off < 0:
			r, _, e = unix.Syscall(unix.SYS_READ, uintptr(fd), p, n)
		case read:
			r, _, e = unix.Syscall6(unix.SYS_PREAD64, uintptr(fd), p, n, uintptr(off), 0, 0)
		case off < 0:
			r, _, e = unix.Syscall(unix.SYS_WRITE, uintptr(fd), p, n)
		default:
			r, _, e = unix.Syscall6(unix.SYS_PWRITE64, uintptr(fd), p, n, uintptr(off), 0, 0)
		}
		if e != 0 {
			return 0, e
		}
		return uint64(r), 0
	}
	iov := c.iov[:0]
	for _, s := range segs {
		if len(s) > 0 {
			iov = append(iov, unix.Iovec{Base: &s[0], Len: uint64(len(s))})
		}
	}
	c.iov = iov[:0]
	var base uintptr
	if len(iov) > 0 {
		base = uintptr(unsafe.Pointer(&iov[0]))
	}
	var nr uintptr
	switch {
	case read && off < 0:
		nr = unix.SYS_READV
	case read:
		nr = unix.SYS_PREADV
	case off < 0:
		nr = unix.SYS_WRITEV
	default:
		nr = unix.SYS_PWRITEV
	}
	r, _, e := unix.Syscall6(nr, uintptr(fd), base, uintptr(len(iov)), uintptr(off), 0, 0)
	clear(iov)
	if e != 0 {
		return 0, e
	}
	return uint64(r), 0
}

// readCached is preadv at off for what the host has in memory: it never blocks, and the Go scheduler is not told of it, which
// would wake another thread for every call of more than a few microseconds. EAGAIN: the host would have to wait.
// EOPNOTSUPP: the file's kind does not know the difference.
func (c *Call) readCached(fd int, segs [][]byte, off int64) (uint64, unix.Errno) {
	iov := c.iov[:0]
	for _, s := range segs {
		if len(s) > 0 {
			iov = append(iov, unix.Iovec{Base: &s[0], Len: uint64(len(s))})
		}
	}
	c.iov = iov[:0]
	if len(iov) == 0 {
		return 0, 0
	}
	// Safe: as in hostIO.
	r, _, e := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)), uintptr(off), 0, rwfNoWait)
	clear(iov)
	runtime.KeepAlive(segs)
	if e != 0 {
		return 0, e
	}
	return uint64(r), 0
}

// readNoWait is preadv2 at the descriptor's position with RWF_NOWAIT: it returns EAGAIN instead of blocking,
// whatever the descriptor's flags say, and EOPNOTSUPP where the kernel cannot promise that.
func readNoWait(fd int, b []byte) (int, unix.Errno) {
	iov := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	n, _, e := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, ^uintptr(0), ^uintptr(0), rwfNoWait)
	runtime.KeepAlive(b)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

const rwfNoWait = 8 // RWF_NOWAIT of linux/fs.h
