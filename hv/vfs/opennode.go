package vfs

import (
	"io"
	"sort"

	"golang.org/x/sys/unix"
)

// openNode is an open file or directory of the tree.
type openNode struct {
	t    *Table
	n    *node
	dir  *node  // where it was found, for its name
	base string // "" for the root and the like

	list []dirent // of a directory, as it was at the last rewind
}

func (t *Table) openObject(at place) *openNode {
	at.n.opens.Add(1)
	return &openNode{t: t, n: at.n, dir: at.dir, base: at.name}
}

func (o *openNode) read(c *Call, _ *file, u *uio, off int64) (uint64, unix.Errno) {
	switch o.n.kind {
	case kindTmp:
		return o.n.readTmp(&o.t.tree.arena, u, off)
	case kindHost:
		left := o.n.size() - off
		if left <= 0 {
			return 0, 0
		}
		n, e := u.transferAll(o.n.host, o.n.start+off, uint64(left))
		if n == 0 && e == 0 && u.left > 0 {
			e = unix.EIO // the archive shrank under us
		}
		return n, e
	}
	return 0, unix.EISDIR
}

func (o *openNode) write(_ *Call, _ *file, u *uio, off int64) (uint64, unix.Errno) {
	if o.n.kind != kindTmp {
		return 0, unix.EBADF
	}
	return o.n.writeTmp(&o.t.tree.arena, u, off)
}

func (o *openNode) stat(st *stat) {
	o.t.tree.mu.RLock()
	o.n.stat(st)
	o.t.tree.mu.RUnlock()
}

func (o *openNode) pollFD() int { return -1 }
func (o *openNode) size() int64 { return o.n.size() }

func (o *openNode) name() string {
	o.t.tree.mu.RLock()
	defer o.t.tree.mu.RUnlock()
	if o.n.isDir() {
		p, _ := o.t.tree.pathOf(o.n)
		return p
	}
	if o.dir == nil {
		return o.t.tree.program
	}
	p, _ := o.t.tree.pathOf(o.dir)
	if p == "/" {
		p = ""
	}
	p += "/" + o.base
	if o.dir.entries[o.base] != o.n && o.n != o.t.tree.progNode {
		p += " (deleted)"
	}
	return p
}

func (o *openNode) release() {
	o.keep(nil)
	o.t.tree.unref(o.n)
}

// maxListed bounds the directory entries in all listings that a guest holds at once.
const maxListed = 1 << 18

// keep replaces the listing by list. A single one may be as long as it is; ENOMEM when there would be too many.
func (o *openNode) keep(list []dirent) unix.Errno {
	delta := int64(len(list) - len(o.list))
	if sum := o.t.listed.Add(delta); delta > 0 && sum > maxListed && sum > int64(len(list)) {
		o.t.listed.Add(-delta)
		return unix.ENOMEM
	}
	o.list = list
	return 0
}

// unref drops a reference of an open file; the contents of an unlinked one go with the last.
func (t *tree) unref(n *node) {
	t.mu.Lock()
	gone := n.opens.Add(-1) == 0 && n.links == 0 && n.kind == kindTmp
	t.mu.Unlock()
	if gone {
		n.free(&t.arena)
	}
}

func (o *openNode) sync() unix.Errno { return 0 }

func (o *openNode) truncate(n int64) unix.Errno {
	if o.n.kind != kindTmp {
		return unix.EINVAL
	}
	return o.n.resize(&o.t.tree.arena, n)
}

func (o *openNode) allocate(mode uint32, off, n int64) unix.Errno {
	if o.n.kind != kindTmp {
		return unix.ENODEV
	}
	return o.n.allocate(&o.t.tree.arena, mode, off, n)
}

func (o *openNode) ioctl(c *Call, f *file, req, arg uint64) (uint64, unix.Errno) {
	if uint32(req) != unix.TIOCINQ || o.n.isDir() {
		return 0, unix.ENOTTY
	}
	f.mu.Lock()
	left := max(0, o.n.size()-f.pos)
	f.mu.Unlock()
	return 0, c.storeU32(arg, uint32(min(left, 1<<31-1)))
}

// ReadAt makes an open file the source of a private mapping.
func (o *openNode) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, unix.EINVAL
	}
	var c Call
	c.in.setHost(&c, p, true)
	n, e := o.read(&c, nil, &c.in, off)
	switch {
	case e != 0:
		return int(n), e
	case n < uint64(len(p)):
		return int(n), io.EOF
	}
	return int(n), nil
}

// dirent is one entry of a directory listing.
type dirent struct {
	name string
	ino  uint64
	typ  byte
}

// listing returns the entries of a directory, "." and ".." first, the rest by name.
func (o *openNode) listing() ([]dirent, unix.Errno) {
	t := &o.t.tree
	if o.n == t.root {
		if e := t.load(); e != 0 {
			return nil, e
		}
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if o.n.dead {
		return nil, unix.ENOENT
	}
	list := make([]dirent, 2, 2+len(o.n.entries))
	list[0] = dirent{".", o.n.ino, unix.DT_DIR}
	list[1] = dirent{"..", o.n.parent.ino, unix.DT_DIR}
	if o.n.kind == kindFDs {
		return append(list, o.t.listFDs()...), 0
	}
	for name, n := range o.n.entries {
		list = append(list, dirent{name, n.ino, n.dirType()})
	}
	sort.Slice(list[2:], func(i, j int) bool { return list[2+i].name < list[2+j].name })
	return list, 0
}
