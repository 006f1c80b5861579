package vfs

import (
	"time"

	"golang.org/x/sys/unix"
)

// atCwd is AT_FDCWD as a 32-bit argument.
const atCwd = int32(unix.AT_FDCWD)

// start returns the directory from which a path is looked up. A reference to an open directory is not needed: nodes
// live as long as someone points to them.
func (t *Table) start(dirfd uint64, path string) (*node, unix.Errno) {
	if len(path) > 0 && path[0] == '/' {
		return t.tree.root, 0
	}
	if int32(dirfd) == atCwd {
		return t.cwd.Load(), 0
	}
	f, e := t.get(dirfd)
	if e != 0 {
		return nil, e
	}
	defer f.put()
	o, ok := f.obj.(*openNode)
	if !ok || !o.n.isDir() {
		return nil, unix.ENOTDIR
	}
	return o.n, 0
}

// pathArg copies a path and finds where it starts.
func (t *Table) pathArg(c *Call, dirfd, addr uint64) (*node, string, unix.Errno) {
	p, e := c.path(addr)
	if e != 0 {
		return nil, "", e
	}
	if p == "" {
		return nil, "", unix.ENOENT
	}
	n, e := t.start(dirfd, p)
	return n, p, e
}

// Flags of open that are kept in the open file description.
const keptFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_PATH | unix.O_SYNC | unix.O_DSYNC

func (t *Table) sysOpenat(c *Call, dirfd, addr, fl, mode uint64) (uint64, unix.Errno) {
	start, path, e := t.pathArg(c, dirfd, addr)
	if e != 0 {
		return 0, e
	}
	flags := int(uint32(fl))
	const tmpfile = unix.O_TMPFILE &^ unix.O_DIRECTORY
	switch {
	case flags&tmpfile != 0:
		return 0, unix.EOPNOTSUPP
	case flags&unix.O_PATH != 0:
		flags &= unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	case flags&unix.O_ACCMODE == unix.O_ACCMODE:
		return 0, unix.EINVAL
	}
	end := follow
	switch {
	case flags&(unix.O_CREAT|unix.O_EXCL) == unix.O_CREAT|unix.O_EXCL, flags&unix.O_CREAT != 0 && flags&unix.O_NOFOLLOW != 0:
		end = entry
	case flags&unix.O_CREAT != 0:
		end = create
	case flags&unix.O_NOFOLLOW != 0:
		end = stay
	}
	var at place
	found := func(p place) unix.Errno {
		at = p
		return t.openable(&at, flags)
	}
	if flags&unix.O_CREAT == 0 {
		e = t.tree.find(start, path, end, found)
	} else {
		e = t.tree.change(start, path, end, func(p place) unix.Errno {
			if p.dir == nil && flags&unix.O_EXCL != 0 {
				return unix.EEXIST
			}
			if p.must || p.dir == nil {
				return unix.EISDIR
			}
			if p.n != nil {
				if flags&unix.O_EXCL != 0 {
					return unix.EEXIST
				}
				if p.n.isDir() {
					return unix.EISDIR
				}
				return found(p)
			}
			n, e := t.tree.create(p, kindTmp, uint32(mode)&0o7777&^t.umask.Load())
			if e != 0 {
				return e
			}
			p.n = n
			at = p
			n.opens.Add(1)
			return 0
		})
	}
	if e != 0 {
		return 0, e
	}
	return t.openNode(at, flags)
}

// openable checks that at may be opened with flags and takes the reference that openNode passes on. The
// tree's lock is held.
func (t *Table) openable(at *place, flags int) unix.Errno {
	n := at.n
	if n == nil {
		return unix.ENOENT
	}
	if (at.must || flags&unix.O_DIRECTORY != 0) && !n.isDir() {
		if n.kind != kindMagic || at.must {
			return unix.ENOTDIR
		}
	}
	write := flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
	if flags&unix.O_PATH == 0 {
		switch n.kind {
		case kindSymlink:
			return unix.ELOOP
		case kindMagic:
			if flags&unix.O_NOFOLLOW != 0 {
				return unix.ELOOP
			}
		case kindDir, kindFDs:
			if write {
				return unix.EISDIR
			}
		case kindHost:
			if write {
				return unix.EROFS
			}
		}
	}
	n.opens.Add(1)
	return 0
}

// openNode makes a descriptor for a node that openable accepted.
func (t *Table) openNode(at place, flags int) (uint64, unix.Errno) {
	n := at.n
	switch {
	case n.kind == kindMagic && flags&unix.O_PATH == 0:
		t.tree.unref(n)
		return t.reopen(n.fd, flags)
	case n.kind == kindDevice && flags&unix.O_PATH == 0:
		t.tree.unref(n)
		return t.open(n.device(), flags&keptFlags)
	}
	if flags&unix.O_TRUNC != 0 && n.kind == kindTmp {
		if e := n.resize(&t.tree.arena, 0); e != 0 {
			t.tree.unref(n)
			return 0, e
		}
	}
	return t.open(&openNode{t: t, n: n, dir: at.dir, base: at.name}, flags&keptFlags)
}

// reopen opens /proc/self/fd/<fd>: files of the tree get a description of their own, anything else is shared.
func (t *Table) reopen(fd, flags int) (uint64, unix.Errno) {
	f, e := t.get(uint64(fd))
	if e != 0 {
		return 0, unix.ENOENT
	}
	defer f.put()
	o, ok := f.obj.(*openNode)
	if !ok {
		if flags&unix.O_DIRECTORY != 0 {
			return 0, unix.ENOTDIR
		}
		return t.sysDup(uint64(fd), 0, flags&unix.O_CLOEXEC != 0)
	}
	at := place{dir: o.dir, name: o.base, n: o.n}
	t.tree.mu.RLock()
	e = t.openable(&at, flags&^unix.O_NOFOLLOW)
	t.tree.mu.RUnlock()
	if e != 0 {
		return 0, e
	}
	return t.openNode(at, flags)
}

// find walks with the tree locked for reading and hands the last component, which may be missing, to f.
func (t *tree) find(start *node, path string, end final, f func(at place) unix.Errno) unix.Errno {
	for {
		t.mu.RLock()
		at, e := t.walk(start, path, end)
		if e == 0 {
			e = f(at)
		}
		t.mu.RUnlock()
		if e != errLoad {
			return e
		}
		if e := t.load(); e != 0 {
			return e
		}
	}
}

// Bounds of /tmp besides its bytes: how many nodes, and what each counts against the limit.
const (
	maxTmpNodes = 1 << 16
	nodeCharge  = 1024
)

// create makes a node in /tmp at a place where there is none. mu is held for writing.
func (t *tree) create(at place, k kind, mode uint32) (*node, unix.Errno) {
	if at.dir == nil || at.name == "" {
		return nil, unix.EEXIST
	}
	if !at.dir.tmp {
		return nil, unix.EROFS
	}
	if at.dir.dead {
		return nil, unix.ENOENT
	}
	if t.nodes >= maxTmpNodes {
		return nil, unix.ENOSPC
	}
	if e := t.arena.charge(nodeCharge); e != 0 {
		return nil, e
	}
	t.nodes++
	n := t.newNode(k, mode)
	n.tmp = true
	n.born(time.Now().UnixNano())
	at.dir.add(at.name, n)
	at.dir.touch()
	return n, 0
}

// unlink takes a node of /tmp out of its directory. mu is held for writing.
func (t *tree) unlink(dir *node, name string) {
	n := dir.entries[name]
	delete(dir.entries, name)
	dir.touch()
	if n.isDir() {
		dir.links--
		n.dead = true
		n.links = 0
	} else {
		n.links--
	}
	if n.links > 0 {
		return
	}
	t.nodes--
	t.arena.refund(nodeCharge + uint64(len(n.target)))
	if n.kind == kindTmp && n.opens.Load() == 0 {
		n.free(&t.arena)
	}
}
