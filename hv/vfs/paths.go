package vfs

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

func (t *Table) setDir(path string) unix.Errno {
	return t.tree.lookup(t.cwd.Load(), path, follow, func(n *node) unix.Errno {
		if !n.isDir() {
			return unix.ENOTDIR
		}
		t.cwd.Store(n)
		return 0
	})
}

func (t *Table) sysChdir(c *Call, addr uint64) (uint64, unix.Errno) {
	p, e := c.path(addr)
	if e != 0 {
		return 0, e
	}
	return 0, t.setDir(p)
}

func (t *Table) sysFchdir(fd uint64) (uint64, unix.Errno) {
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	o, ok := f.obj.(*openNode)
	if !ok || !o.n.isDir() {
		return 0, unix.ENOTDIR
	}
	t.cwd.Store(o.n)
	return 0, 0
}

func (t *Table) sysGetcwd(c *Call, addr, n uint64) (uint64, unix.Errno) {
	t.tree.mu.RLock()
	p, e := t.tree.pathOf(t.cwd.Load())
	t.tree.mu.RUnlock()
	if e != 0 {
		return 0, e
	}
	if uint64(len(p))+1 > n {
		return 0, unix.ERANGE
	}
	return uint64(len(p)) + 1, c.copyOut(addr, append([]byte(p), 0))
}

func (t *Table) sysMkdirat(c *Call, dirfd, addr, mode uint64) (uint64, unix.Errno) {
	start, path, e := t.pathArg(c, dirfd, addr)
	if e != 0 {
		return 0, e
	}
	return 0, t.tree.change(start, path, entry, func(at place) unix.Errno {
		if at.n != nil {
			return unix.EEXIST
		}
		_, e := t.tree.create(at, kindDir, uint32(mode)&0o1777&^t.umask.Load())
		return e
	})
}

// atEntry checks that a place is an entry that may be taken away or moved.
func atEntry(at place) unix.Errno {
	switch {
	case at.n == nil:
		return unix.ENOENT
	case at.must && !at.n.isDir():
		return unix.ENOTDIR
	case at.dir == nil:
		return unix.EBUSY
	case !at.dir.tmp:
		if at.n.tmp {
			return unix.EBUSY // /tmp itself
		}
		return unix.EROFS
	}
	return 0
}

func (t *Table) sysUnlinkat(c *Call, dirfd, addr, flags uint64) (uint64, unix.Errno) {
	if flags&^uint64(unix.AT_REMOVEDIR) != 0 {
		return 0, unix.EINVAL
	}
	start, path, e := t.pathArg(c, dirfd, addr)
	if e != 0 {
		return 0, e
	}
	return 0, t.tree.change(start, path, entry, func(at place) unix.Errno {
		if flags != 0 && at.n != nil && at.dir == nil { // ".", ".." or a root
			if lastDot(path) {
				return unix.EINVAL
			}
			if lastDotDot(path) {
				return unix.ENOTEMPTY
			}
		}
		if flags == 0 && at.n != nil && at.n.isDir() {
			return unix.EISDIR
		}
		if e := atEntry(at); e != 0 {
			return e
		}
		if flags != 0 {
			if !at.n.isDir() {
				return unix.ENOTDIR
			}
			if len(at.n.entries) != 0 {
				return unix.ENOTEMPTY
			}
		}
		t.tree.unlink(at.dir, at.name)
		return 0
	})
}

func lastDot(p string) bool    { return lastComponent(p) == "." }
func lastDotDot(p string) bool { return lastComponent(p) == ".." }

func lastComponent(p string) string {
	for len(p) > 0 && p[len(p)-1] == '/' {
		p = p[:len(p)-1]
	}
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] == '/' {
			return p[i+1:]
		}
	}
	return p
}

func (t *Table) sysRenameat2(c *Call, oldfd, oldAddr, newfd, newAddr, flags uint64) (uint64, unix.Errno) {
	if flags&^uint64(unix.RENAME_NOREPLACE) != 0 {
		return 0, unix.EINVAL
	}
	from, oldPath, e := t.pathArg(c, oldfd, oldAddr)
	if e != 0 {
		return 0, e
	}
	to, newPath, e := t.pathArg(c, newfd, newAddr)
	if e != 0 {
		return 0, e
	}
	return 0, t.tree.change(from, oldPath, entry, func(src place) unix.Errno {
		dst, e := t.tree.walk(to, newPath, entry)
		if e != 0 {
			return e
		}
		return t.tree.rename(src, dst, flags != 0)
	})
}

// rename moves src to dst. mu is held for writing.
func (t *tree) rename(src, dst place, keep bool) unix.Errno {
	if src.n == nil {
		return unix.ENOENT
	}
	if src.dir == nil || dst.dir == nil {
		return unix.EBUSY
	}
	if src.dir.tmp != dst.dir.tmp {
		return unix.EXDEV
	}
	if e := atEntry(src); e != 0 {
		return e
	}
	n := src.n
	switch {
	case dst.dir.dead:
		return unix.ENOENT
	case dst.n != nil && keep:
		return unix.EEXIST
	case (dst.must || src.must) && !n.isDir():
		return unix.ENOTDIR
	}
	if n.isDir() {
		for d := dst.dir; d != t.root; d = d.parent {
			if d == n {
				return unix.EINVAL
			}
		}
	}
	if dst.n == n {
		return 0
	}
	if old := dst.n; old != nil {
		switch {
		case old.isDir() && !n.isDir():
			return unix.EISDIR
		case !old.isDir() && n.isDir():
			return unix.ENOTDIR
		case old.isDir() && len(old.entries) != 0:
			return unix.ENOTEMPTY
		}
		t.unlink(dst.dir, dst.name)
	}
	delete(src.dir.entries, src.name)
	if n.isDir() {
		src.dir.links--
	}
	dst.dir.add(dst.name, n)
	src.dir.touch()
	dst.dir.touch()
	return 0
}

func (t *Table) sysLinkat(c *Call, oldfd, oldAddr, newfd, newAddr, flags uint64) (uint64, unix.Errno) {
	if flags&^uint64(unix.AT_SYMLINK_FOLLOW) != 0 {
		return 0, unix.EINVAL
	}
	from, oldPath, e := t.pathArg(c, oldfd, oldAddr)
	if e != 0 {
		return 0, e
	}
	to, newPath, e := t.pathArg(c, newfd, newAddr)
	if e != 0 {
		return 0, e
	}
	end := stay
	if flags != 0 {
		end = follow
	}
	return 0, t.tree.change(from, oldPath, end, func(src place) unix.Errno {
		dst, e := t.tree.walk(to, newPath, entry)
		switch {
		case e != 0:
			return e
		case src.n == nil:
			return unix.ENOENT
		case dst.n != nil:
			return unix.EEXIST
		case src.n.isDir():
			return unix.EPERM
		case src.must:
			return unix.ENOTDIR
		case dst.must:
			return unix.ENOENT
		case !dst.dir.tmp && !src.n.tmp:
			return unix.EROFS
		case dst.dir.tmp != src.n.tmp:
			return unix.EXDEV
		case dst.dir.dead:
			return unix.ENOENT
		case src.n.links >= 1<<16:
			return unix.EMLINK
		case len(dst.dir.entries) >= maxTmpNodes:
			return unix.ENOSPC
		}
		src.n.links++
		dst.dir.add(dst.name, src.n)
		dst.dir.touch()
		return 0
	})
}

func (t *Table) sysSymlinkat(c *Call, target, newfd, newAddr uint64) (uint64, unix.Errno) {
	to, e := c.path(target)
	if e != 0 {
		return 0, e
	}
	start, path, e := t.pathArg(c, newfd, newAddr)
	if e != 0 {
		return 0, e
	}
	if to == "" {
		return 0, unix.ENOENT
	}
	return 0, t.tree.change(start, path, entry, func(at place) unix.Errno {
		if at.n != nil {
			return unix.EEXIST
		}
		if at.must {
			return unix.ENOENT
		}
		if e := t.tree.arena.charge(uint64(len(to))); e != 0 {
			return e
		}
		n, e := t.tree.create(at, kindSymlink, 0o777)
		if e != 0 {
			t.tree.arena.refund(uint64(len(to)))
			return e
		}
		n.target = to
		return 0
	})
}

func (t *Table) sysReadlinkat(c *Call, dirfd, addr, buf, n uint64) (uint64, unix.Errno) {
	if int32(n) <= 0 {
		return 0, unix.EINVAL
	}
	start, path, e := t.pathArg(c, dirfd, addr)
	if e != 0 {
		return 0, e
	}
	var target string
	fd := -1
	e = t.tree.lookup(start, path, stay, func(n *node) unix.Errno {
		switch {
		case n.kind == kindSymlink, n.kind == kindMagic && n.fd < 0:
			target = n.target
		case n.kind == kindMagic:
			fd = n.fd
		default:
			return unix.EINVAL
		}
		return 0
	})
	if e != 0 {
		return 0, e
	}
	if fd >= 0 {
		f, e := t.get(uint64(fd))
		if e != 0 {
			return 0, unix.ENOENT
		}
		target = f.obj.name()
		f.put()
	}
	b := []byte(target)
	b = b[:min(uint64(len(b)), uint64(uint32(n)))]
	return uint64(len(b)), c.copyOut(buf, b)
}

func (t *Table) sysTruncate(c *Call, addr, n uint64) (uint64, unix.Errno) {
	start, path, e := t.pathArg(c, cwdArg, addr)
	if e != 0 {
		return 0, e
	}
	if int64(n) < 0 {
		return 0, unix.EINVAL
	}
	return 0, t.tree.lookup(start, path, follow, func(nd *node) unix.Errno {
		switch {
		case nd.isDir():
			return unix.EISDIR
		case nd.kind == kindHost:
			return unix.EROFS
		case nd.kind != kindTmp:
			return unix.EINVAL
		}
		return nd.resize(&t.tree.arena, int64(n))
	})
}

// sysAccess serves access, faccessat and faccessat2. The guest is its own superuser: it may read and write
// what exists, except on the read-only root.
func (t *Table) sysAccess(c *Call, dirfd, addr, mode, flags uint64) (uint64, unix.Errno) {
	const known = unix.AT_EACCESS | unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH
	if mode&^7 != 0 || flags&^uint64(known) != 0 {
		return 0, unix.EINVAL
	}
	return 0, t.onNode(c, dirfd, addr, flags, func(n *node) unix.Errno {
		if mode&unix.W_OK != 0 && !n.tmp && (n.isDir() || n.isRegular()) {
			return unix.EROFS
		}
		if mode&unix.X_OK != 0 && !n.isDir() && n.mode.Load()&0o111 == 0 {
			return unix.EACCES
		}
		return 0
	})
}

// onNode finds the node that a path, or with AT_EMPTY_PATH a descriptor, names, and hands it to f with the
// tree's lock held for reading. Descriptors that are no files of the tree stand for a nameless writable one.
func (t *Table) onNode(c *Call, dirfd, addr, flags uint64, f func(n *node) unix.Errno) unix.Errno {
	path, e := c.path(addr)
	if e != 0 {
		return e
	}
	if path == "" {
		if flags&unix.AT_EMPTY_PATH == 0 {
			return unix.ENOENT
		}
		if int32(dirfd) == atCwd {
			path = "."
		} else {
			return t.onFD(dirfd, f)
		}
	}
	start, e := t.start(dirfd, path)
	if e != 0 {
		return e
	}
	fd := -1
	end := follow
	if flags&unix.AT_SYMLINK_NOFOLLOW != 0 {
		end = stay
	}
	e = t.tree.lookup(start, path, end, func(n *node) unix.Errno {
		if n.kind == kindMagic && n.fd >= 0 && flags&unix.AT_SYMLINK_NOFOLLOW == 0 {
			fd = n.fd
			return 0
		}
		return f(n)
	})
	if e == 0 && fd >= 0 {
		if e = t.onFD(uint64(fd), f); e == unix.EBADF {
			e = unix.ENOENT
		}
	}
	return e
}

func (t *Table) onFD(fd uint64, f func(n *node) unix.Errno) unix.Errno {
	file, e := t.get(fd)
	if e != 0 {
		return e
	}
	defer file.put()
	t.tree.mu.RLock()
	defer t.tree.mu.RUnlock()
	if o, ok := file.obj.(*openNode); ok {
		return f(o.n)
	}
	n := &node{kind: kindDevice, tmp: true, device: func() object { return file.obj }}
	n.mode.Store(0o600)
	return f(n)
}

// sysChmod serves chmod and its family: modes change in /tmp only, and owners nowhere.
func (t *Table) sysChmod(c *Call, dirfd, addr, mode, flags uint64, owner bool) (uint64, unix.Errno) {
	return 0, t.onNode(c, dirfd, addr, flags, func(n *node) unix.Errno { return setMode(n, mode, owner) })
}

func (t *Table) sysFchmod(fd, mode uint64, owner bool) (uint64, unix.Errno) {
	return 0, t.onFD(fd, func(n *node) unix.Errno { return setMode(n, mode, owner) })
}

func setMode(n *node, mode uint64, owner bool) unix.Errno {
	if !n.tmp {
		return unix.EROFS
	}
	if !owner && n.kind != kindDevice {
		n.mode.Store(uint32(mode) & 0o7777)
	}
	return 0
}

func (t *Table) sysUmask(mask uint64) (uint64, unix.Errno) {
	return uint64(t.umask.Swap(uint32(mask) & 0o777)), 0
}

// sysUtimensat serves utimensat, also with a null path; only modification times are kept.
func (t *Table) sysUtimensat(c *Call, dirfd, addr, times, flags uint64) (uint64, unix.Errno) {
	now := time.Now().UnixNano()
	set, omit := now, false
	if times != 0 {
		var b [32]byte
		if e := c.copyIn(times, b[:]); e != 0 {
			return 0, e
		}
		for i := range 2 {
			sec := int64(binary.LittleEndian.Uint64(b[16*i:]))
			ns := int64(binary.LittleEndian.Uint64(b[16*i+8:]))
			set, omit = now, ns == unix.UTIME_OMIT
			if ns == unix.UTIME_NOW || ns == unix.UTIME_OMIT {
				continue
			}
			if ns < 0 || ns >= 1e9 {
				return 0, unix.EINVAL
			}
			const most = 1<<33 - 1
			set = max(-most, min(most, sec))*1e9 + ns
		}
	}
	apply := func(n *node) unix.Errno {
		if !n.tmp {
			return unix.EROFS
		}
		if !omit {
			n.mtime.Store(set)
		}
		return 0
	}
	if addr == 0 {
		return 0, t.onFD(dirfd, apply)
	}
	return 0, t.onNode(c, dirfd, addr, flags, apply)
}
