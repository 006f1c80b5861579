package vfs

import "golang.org/x/sys/unix"

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
	if int64(n) < 0 {
		return 0, unix.EINVAL
	}
	start, path, e := t.pathArg(c, cwdArg, addr)
	if e != 0 {
		return 0, e
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
