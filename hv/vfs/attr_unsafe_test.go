package vfs

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stat and statx return the guest's structures as the host's types, whose layout they must have.
func (g *guest) stat(path string) unix.Stat_t {
	g.tb.Helper()
	buf := g.alloc(statSize)
	g.ok(unix.SYS_STAT, g.str(path), buf)
	return g.hostStat(buf)
}

// hostStat views a struct stat in guest memory as the host's type; both are 144 bytes of plain numbers.
func (g *guest) hostStat(buf uint64) unix.Stat_t {
	return *(*unix.Stat_t)(unsafe.Pointer(&g.view(buf, statSize)[0]))
}

func (g *guest) statx(path string) unix.Statx_t {
	g.tb.Helper()
	buf := g.alloc(256)
	g.ok(unix.SYS_STATX, cwdArg, g.str(path), 0, unix.STATX_BASIC_STATS, buf)
	return *(*unix.Statx_t)(unsafe.Pointer(&g.view(buf, 256)[0]))
}

func TestAttributes(t *testing.T) {
	cfg := withFiles(t, archive(t, ordinary))
	g := newGuest(t, cfg, true)
	if was := g.ok(unix.SYS_UMASK, 0o077); was != 0o022 {
		t.Errorf("umask was %o", was)
	}
	fd := g.ok(unix.SYS_CREAT, g.str("/tmp/f"), 0o666)
	g.write(fd, "12345")
	if st := g.stat("/tmp/f"); st.Mode != unix.S_IFREG|0o600 || st.Size != 5 || st.Nlink != 1 || st.Blksize != 4096 || st.Blocks != 8 || st.Ino == 0 {
		t.Errorf("%+v", st)
	}
	g.ok(unix.SYS_FCHMOD, fd, 0o4751)
	g.ok(unix.SYS_CHOWN, g.str("/tmp/f"), 7, 8)
	g.ok(unix.SYS_FCHOWN, fd, 1<<32-1, 9)
	times := make([]byte, 32)
	le := binary.LittleEndian
	le.PutUint64(times, ^uint64(9)) // 10 s before 1970
	le.PutUint64(times[8:], 5)
	le.PutUint64(times[16:], 2000)
	le.PutUint64(times[24:], 999999999)
	g.ok(unix.SYS_UTIMENSAT, cwdArg, g.str("/tmp/f"), g.bytes(times), 0)
	st, sx := g.stat("/tmp/f"), g.statx("/tmp/f")
	if st.Mode != unix.S_IFREG|0o4751 || st.Uid != 7 || st.Gid != 9 || st.Atim != (unix.Timespec{Sec: -10, Nsec: 5}) || st.Mtim != (unix.Timespec{Sec: 2000, Nsec: 999999999}) {
		t.Errorf("%+v", st)
	}
	if uint32(sx.Mode) != st.Mode || sx.Uid != 7 || sx.Gid != 9 || sx.Atime.Sec != -10 || sx.Atime.Nsec != 5 || sx.Mtime.Sec != 2000 ||
		sx.Size != 5 || sx.Ino != st.Ino || sx.Nlink != 1 || sx.Blocks != 8 || unix.Mkdev(sx.Dev_major, sx.Dev_minor) != st.Dev || sx.Mask != unix.STATX_BASIC_STATS {
		t.Errorf("%+v", sx)
	}
	// One time now, the other left; through the descriptor; out of range.
	le.PutUint64(times[8:], unix.UTIME_OMIT)
	le.PutUint64(times[24:], unix.UTIME_NOW)
	g.ok(unix.SYS_UTIMENSAT, fd, 0, g.bytes(times), 0)
	if st := g.stat("/tmp/f"); st.Atim.Sec != -10 || st.Mtim.Sec < 1e9 {
		t.Errorf("%+v", st)
	}
	le.PutUint64(times[8:], 1e9)
	g.fails(unix.EINVAL, unix.SYS_UTIMENSAT, cwdArg, g.str("/tmp/f"), g.bytes(times), 0)
	le.PutUint64(times, 1<<62)
	le.PutUint64(times[8:], 0)
	g.ok(unix.SYS_UTIMENSAT, cwdArg, g.str("/tmp/f"), g.bytes(times), 0)
	// Of descriptors that are no files.
	r, _ := g.pipe(0)
	buf := g.alloc(256)
	empty := g.str("")
	g.ok(unix.SYS_NEWFSTATAT, r, empty, buf, unix.AT_EMPTY_PATH)
	if m := g.u32(buf + 24); m != unix.S_IFIFO|0o600 {
		t.Errorf("a pipe's mode is %o", m)
	}
	g.ok(unix.SYS_STATX, 1, empty, unix.AT_EMPTY_PATH, 0, buf)
	g.fails(unix.ENOENT, unix.SYS_NEWFSTATAT, r, empty, buf, 0)
	g.fails(unix.EINVAL, unix.SYS_NEWFSTATAT, r, empty, buf, 1)
	g.fails(unix.EINVAL, unix.SYS_STATX, r, empty, 1, 0, buf)
	g.fails(unix.EFAULT, unix.SYS_STAT, g.str("/"), 16)
	g.fails(unix.EFAULT, unix.SYS_STAT, 16, buf)
	g.ok(unix.SYS_FCHOWN, r, 1, 1)
	g.ok(unix.SYS_FACCESSAT2, r, empty, unix.W_OK, unix.AT_EMPTY_PATH)
	g.fails(unix.EINVAL, unix.SYS_ACCESS, g.str("/"), 8)
	g.ok(unix.SYS_SYMLINK, g.str("f"), g.str("/tmp/l"))
	g.ok(unix.SYS_FCHMODAT, cwdArg, g.str("/tmp/l"), 0o640)
	g.fails(unix.EOPNOTSUPP, unix.SYS_FCHMODAT2, cwdArg, g.str("/tmp/l"), 0o640, unix.AT_SYMLINK_NOFOLLOW)
	if st := g.stat("/tmp/f"); st.Mode != unix.S_IFREG|0o640 {
		t.Errorf("mode %o", st.Mode)
	}
	g.ok(unix.SYS_LINKAT, cwdArg, g.str("/tmp/l"), cwdArg, g.str("/tmp/hard"), unix.AT_SYMLINK_FOLLOW)
	if a, b := g.stat("/tmp/hard"), g.stat("/tmp/f"); a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("%+v", a)
	}
	g.ok(unix.SYS_FSTATFS, fd, buf)
	g.ok(unix.SYS_STATFS, g.str("/etc"), buf)
	if flags := le.Uint64(g.view(buf+80, 8)); flags&1 == 0 {
		t.Error("the root is not read-only")
	}
	// Locks of the only process there is.
	lock := g.bytes([]byte{unix.F_WRLCK, 0, 0, 0})
	g.ok(unix.SYS_FCNTL, fd, unix.F_SETLK, lock)
	g.ok(unix.SYS_FCNTL, fd, unix.F_GETLK, lock)
	if g.view(lock, 1)[0] != unix.F_UNLCK {
		t.Error("a lock is in the way")
	}
	g.ok(unix.SYS_FLOCK, fd, unix.LOCK_EX)
	g.ok(unix.SYS_FADVISE64, fd, 0, 0, 0)
	g.fails(unix.EBADF, unix.SYS_FLOCK, 99, unix.LOCK_EX)
	g.fails(unix.EINVAL, unix.SYS_FCNTL, fd, 9999)
	g.fails(unix.EINVAL, unix.SYS_SPLICE, r, 0, fd, 0, 1, 0)
	if _, _, known := g.t.Syscall(g.c, unix.SYS_SOCKET, [6]uint64{}); known {
		t.Error("socket is ours")
	}
}
