package vfs

import "golang.org/x/sys/unix"

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
