package vfs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// stat is what any of the stat calls reports.
type stat struct {
	dev, ino, links uint64
	mode            uint32
	rdev            uint64
	size            int64
	blocks          uint64
	uid, gid        uint32
	mtime, atime    int64 // Unix ns
}

// hostStat takes over what a guest may know of a host descriptor behind its console.
func hostStat(fd int, st *stat) {
	var h unix.Stat_t
	if fd < 0 || unix.Fstat(fd, &h) != nil {
		st.mode, st.rdev = unix.S_IFCHR|0o666, unix.Mkdev(1, 3)
		return
	}
	st.mode, st.size, st.mtime = h.Mode&(unix.S_IFMT|0o777), h.Size, h.Mtim.Nano()
	if h.Mode&unix.S_IFMT == unix.S_IFCHR {
		st.rdev = unix.Mkdev(5, 1)
	}
}

// statFile returns what fstat says about f.
func (t *Table) statFile(f *file) stat {
	st := stat{dev: devRoot, links: 1}
	f.obj.stat(&st)
	return st
}

func (t *Table) onNodeStat(c *Call, dirfd, addr, flags uint64, st *stat) unix.Errno {
	return t.onNode(c, dirfd, addr, flags, func(n *node) unix.Errno {
		n.stat(st)
		return 0
	})
}

func (t *Table) sysFstat(c *Call, fd, addr uint64) (uint64, unix.Errno) {
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	st := t.statFile(f)
	f.put()
	return 0, c.copyOut(addr, st.wire(c.small[:statSize]))
}

// sysFstatat serves newfstatat, stat and lstat.
func (t *Table) sysFstatat(c *Call, dirfd, path, addr, flags uint64) (uint64, unix.Errno) {
	const known = unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH | unix.AT_NO_AUTOMOUNT
	if flags&^uint64(known) != 0 {
		return 0, unix.EINVAL
	}
	var st stat
	st.dev, st.links = devRoot, 1
	if e := t.onNodeStat(c, dirfd, path, flags, &st); e != 0 {
		return 0, e
	}
	return 0, c.copyOut(addr, st.wire(c.small[:statSize]))
}

func (t *Table) sysStatx(c *Call, dirfd, path, flags, mask, addr uint64) (uint64, unix.Errno) {
	const known = unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_FORCE_SYNC | unix.AT_STATX_DONT_SYNC
	if flags&^uint64(known) != 0 {
		return 0, unix.EINVAL
	}
	st := stat{dev: devRoot, links: 1}
	if e := t.onNodeStat(c, dirfd, path, flags, &st); e != 0 {
		return 0, e
	}
	b := c.small[:256]
	clear(b)
	le := binary.LittleEndian
	le.PutUint32(b, unix.STATX_BASIC_STATS)
	le.PutUint32(b[4:], blockSize)
	le.PutUint32(b[16:], uint32(st.links))
	le.PutUint16(b[28:], uint16(st.mode))
	le.PutUint64(b[32:], st.ino)
	le.PutUint64(b[40:], uint64(st.size))
	le.PutUint64(b[48:], st.blocks)
	le.PutUint32(b[20:], st.uid)
	le.PutUint32(b[24:], st.gid)
	for i, at := range [3]int{64, 96, 112} {
		sec, ns := split([3]int64{st.atime, st.mtime, st.mtime}[i]) // access, change, modification
		le.PutUint64(b[at:], uint64(sec))
		le.PutUint32(b[at+8:], uint32(ns))
	}
	le.PutUint32(b[128:], unix.Major(st.rdev))
	le.PutUint32(b[132:], unix.Minor(st.rdev))
	le.PutUint32(b[136:], unix.Major(st.dev))
	le.PutUint32(b[140:], unix.Minor(st.dev))
	return 0, c.copyOut(addr, b)
}

// split turns Unix ns into seconds and a non-negative rest.
func split(ns int64) (int64, int64) {
	sec, rest := ns/1e9, ns%1e9
	if rest < 0 {
		sec, rest = sec-1, rest+1e9
	}
	return sec, rest
}

// sysStatfs serves statfs; every path is on one of the two file systems.
func (t *Table) sysStatfs(c *Call, path, addr uint64) (uint64, unix.Errno) {
	tmp := false
	e := t.onNode(c, cwdArg, path, 0, func(n *node) unix.Errno {
		tmp = n.tmp
		return 0
	})
	if e != 0 {
		return 0, e
	}
	return t.statfs(c, addr, tmp)
}

func (t *Table) sysFstatfs(c *Call, fd, addr uint64) (uint64, unix.Errno) {
	tmp := false
	if e := t.onFD(fd, func(n *node) unix.Errno { tmp = n.tmp; return 0 }); e != 0 {
		return 0, e
	}
	return t.statfs(c, addr, tmp)
}

func (t *Table) statfs(c *Call, addr uint64, tmp bool) (uint64, unix.Errno) {
	var free, total, flags uint64 = 0, 0, 1 // ST_RDONLY
	if tmp {
		free, total = t.tree.arena.room()
		flags = 0
	}
	b := c.small[:120]
	clear(b)
	le := binary.LittleEndian
	le.PutUint64(b, unix.TMPFS_MAGIC)
	le.PutUint64(b[8:], blockSize)
	le.PutUint64(b[16:], total)
	le.PutUint64(b[24:], free)
	le.PutUint64(b[32:], free)
	le.PutUint64(b[40:], maxTmpNodes)
	le.PutUint64(b[48:], maxTmpNodes)
	le.PutUint64(b[64:], nameMax)
	le.PutUint64(b[72:], blockSize)
	le.PutUint64(b[80:], flags)
	return 0, c.copyOut(addr, b)
}
