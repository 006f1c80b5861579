package vfs

import (
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the symbolic links followed in one look-up, as Linux does.
const maxLinks = 40

// tree is the guest's file tree.
type tree struct {
	mu    sync.RWMutex // see node
	root  *node
	tmp   *node
	fds   *node
	arena arena
	nodes int // in /tmp
	ino   uint64

	files     int // the archive
	loaded    bool
	bundleErr error
	program   string
	progNode  *node
}

func (t *tree) newNode(k kind, mode uint32) *node {
	t.ino++
	n := &node{kind: k, ino: t.ino, links: 1, fd: -1}
	n.mode.Store(mode)
	if k == kindDir {
		n.entries = make(map[string]*node)
		n.links = 2
	}
	return n
}

// add links child into dir under name.
func (dir *node) add(name string, child *node) {
	dir.entries[name] = child
	if child.isDir() {
		child.parent, child.name = dir, name
		dir.links++
	}
}

func (t *tree) init(cfg *Config) {
	t.files = cfg.Files
	now := time.Now().UnixNano()
	t.root = t.newNode(kindDir, 0o755)
	t.root.parent = t.root
	t.tmp = t.newNode(kindDir, 0o1777)
	t.tmp.tmp = true
	t.tmp.born(now)
	t.root.born(now)
	t.root.add("tmp", t.tmp)
	t.arena.limit = cfg.TmpLimit
	if t.arena.limit == 0 {
		t.arena.limit = DefaultTmpLimit
	}
	t.arena.limit = min(t.arena.limit, 1<<40)
	t.program = "/bin/" + cfg.ProgramName
	t.addSpecial(cfg, now)
}

func (t *tree) close() { t.arena.close() }

// errLoad asks the caller of a walk to load the archive and walk again.
const errLoad = unix.Errno(1 << 16)

// place is where a walk ended: the last component of a path, which may not exist.
type place struct {
	dir  *node  // its directory; nil when the path ends in a root, "." or ".."
	name string // its name in dir
	n    *node  // the node; nil when there is none
	must bool   // the path ends in a slash: only a directory will do
}

// final says what becomes of a symbolic link that is the last component of a path.
type final int

const (
	follow final = iota
	stay         // it is the result, unless a slash comes after it
	entry        // it is the result: the caller wants the directory's entry
	create       // it is followed, unless a slash comes after it
)

// follows reports whether a link at the end of a path is followed; slash says that one comes after it.
func (f final) follows(slash bool) bool {
	return f == follow || f == stay && slash || f == create && !slash
}

// walk finds path from start. Symbolic links are followed, the last component as end says. A missing last
// component is no error. mu is held.
func (t *tree) walk(start *node, path string, end final) (place, unix.Errno) {
	if path == "" {
		return place{}, unix.ENOENT
	}
	at := place{n: start}
	rest := path
	links := 0
	for {
		if strings.HasPrefix(rest, "/") {
			at = place{n: t.root}
		}
		rest = strings.TrimLeft(rest, "/")
		if rest == "" {
			at.must = strings.HasSuffix(path, "/")
			return at, 0
		}
		name, tail, more := strings.Cut(rest, "/")
		tail = strings.TrimLeft(tail, "/") // a slash at the start of rest would mean the root
		last := tail == ""
		cur := at.n
		if cur.kind == kindMagic { // a component of a path that stands for an open directory
			return place{}, unix.ENOTDIR
		}
		if !cur.isDir() {
			return place{}, unix.ENOTDIR
		}
		if len(name) > nameMax {
			return place{}, unix.ENAMETOOLONG
		}
		switch name {
		case ".":
			if cur.dead && last {
				return place{}, unix.ENOENT
			}
			at, rest = place{n: cur}, tail
			if last {
				at.must = true
				return at, 0
			}
			continue
		case "..":
			at, rest = place{n: cur.parent}, tail
			if last {
				at.must = true
				return at, 0
			}
			continue
		}
		n, e := t.child(cur, name)
		if e != 0 {
			return place{}, e
		}
		if n == nil {
			if !last {
				return place{}, unix.ENOENT
			}
			if cur.dead {
				return place{}, unix.ENOENT
			}
			return place{dir: cur, name: name, must: more}, 0
		}
		if n.kind == kindMagic && n.real != nil && (!last || end.follows(more)) {
			n = n.real
		}
		if n.kind == kindSymlink && (!last || end.follows(more)) {
			if links++; links > maxLinks {
				return place{}, unix.ELOOP
			}
			if len(n.target)+len(tail) > 16*pathMax {
				return place{}, unix.ENAMETOOLONG
			}
			if more {
				rest = n.target + "/" + tail
			} else {
				rest = n.target
			}
			path = rest
			continue
		}
		at = place{dir: cur, name: name, n: n, must: last && more}
		if last {
			return at, 0
		}
		rest = tail
	}
}

// child returns the entry name of dir, or nil.
func (t *tree) child(dir *node, name string) (*node, unix.Errno) {
	if dir.kind == kindFDs {
		return t.fdNode(name), 0
	}
	n := dir.entries[name]
	if n == nil && dir == t.root && !t.loaded {
		return nil, errLoad
	}
	return n, 0
}

// lookup walks with the tree locked for reading and hands the result to f under the same lock. A directory
// named where only one will do, and missing nodes, are errors.
func (t *tree) lookup(start *node, path string, end final, f func(n *node) unix.Errno) unix.Errno {
	for {
		t.mu.RLock()
		at, e := t.walk(start, path, end)
		if e == errLoad {
			t.mu.RUnlock()
			if e := t.load(); e != 0 {
				return e
			}
			continue
		}
		switch {
		case e != 0:
		case at.n == nil:
			e = unix.ENOENT
		case at.must && !at.n.isDir():
			e = unix.ENOTDIR
		default:
			e = f(at.n)
		}
		t.mu.RUnlock()
		return e
	}
}

// change walks with the tree locked for writing and hands the last component to f.
func (t *tree) change(start *node, path string, end final, f func(at place) unix.Errno) unix.Errno {
	for {
		t.mu.Lock()
		at, e := t.walk(start, path, end)
		if e == 0 {
			e = f(at)
		}
		t.mu.Unlock()
		if e != errLoad {
			return e
		}
		if e := t.load(); e != 0 {
			return e
		}
	}
}

// pathOf returns the absolute path of a directory. mu is held.
func (t *tree) pathOf(n *node) (string, unix.Errno) {
	if n == t.root {
		return "/", 0
	}
	var parts []string
	for ; n != t.root; n = n.parent {
		if n.dead {
			return "", unix.ENOENT
		}
		parts = append(parts, n.name)
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(parts[i])
	}
	return b.String(), 0
}
