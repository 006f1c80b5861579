package vfs

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// sysChmod serves chmod and its family, in /tmp only.
func (t *Table) sysChmod(c *Call, dirfd, addr, mode, flags uint64) (uint64, unix.Errno) {
	return 0, t.onNode(c, dirfd, addr, flags, chmod(mode))
}

func (t *Table) sysFchmod(fd, mode uint64) (uint64, unix.Errno) { return 0, t.onFD(fd, chmod(mode)) }

func chmod(mode uint64) func(n *node) unix.Errno {
	return func(n *node) unix.Errno {
		switch {
		case !n.tmp:
			return unix.EROFS
		case n.kind == kindSymlink:
			return unix.EOPNOTSUPP
		case n.kind != kindDevice:
			n.mode.Store(uint32(mode) & 0o7777)
		}
		return 0
	}
}

// sysChown serves chown and its family, in /tmp only: owners are kept and mean nothing.
func (t *Table) sysChown(c *Call, dirfd, addr, uid, gid, flags uint64) (uint64, unix.Errno) {
	return 0, t.onNode(c, dirfd, addr, flags, chown(uid, gid))
}

func (t *Table) sysFchown(fd, uid, gid uint64) (uint64, unix.Errno) {
	return 0, t.onFD(fd, chown(uid, gid))
}

func chown(uid, gid uint64) func(n *node) unix.Errno {
	return func(n *node) unix.Errno {
		if !n.tmp {
			return unix.EROFS
		}
		for {
			was := n.owner.Load()
			now := was
			if uint32(uid) != ^uint32(0) {
				now = now&^0xffffffff | uint64(uint32(uid))
			}
			if uint32(gid) != ^uint32(0) {
				now = now&0xffffffff | gid<<32
			}
			if n.owner.CompareAndSwap(was, now) {
				return 0
			}
		}
	}
}

func (t *Table) sysUmask(mask uint64) (uint64, unix.Errno) {
	return uint64(t.umask.Swap(uint32(mask) & 0o777)), 0
}

// sysUtimensat serves utimensat, also with a null path.
func (t *Table) sysUtimensat(c *Call, dirfd, addr, times, flags uint64) (uint64, unix.Errno) {
	now := time.Now().UnixNano()
	set, omit := [2]int64{now, now}, [2]bool{}
	if times != 0 {
		if e := c.copyIn(times, c.small[:32]); e != 0 {
			return 0, e
		}
		for i := range 2 {
			sec := int64(binary.LittleEndian.Uint64(c.small[16*i:]))
			ns := int64(binary.LittleEndian.Uint64(c.small[16*i+8:]))
			switch {
			case ns == unix.UTIME_NOW:
			case ns == unix.UTIME_OMIT:
				omit[i] = true
			case ns < 0 || ns >= 1e9:
				return 0, unix.EINVAL
			default:
				const most = 1<<33 - 1
				set[i] = max(-most, min(most, sec))*1e9 + ns
			}
		}
	}
	apply := func(n *node) unix.Errno {
		if !n.tmp {
			return unix.EROFS
		}
		if !omit[0] {
			n.atime.Store(set[0])
		}
		if !omit[1] {
			n.mtime.Store(set[1])
		}
		return 0
	}
	if addr == 0 {
		return 0, t.onFD(dirfd, apply)
	}
	return 0, t.onNode(c, dirfd, addr, flags, apply)
}
