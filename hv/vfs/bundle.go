package vfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of an archive.
const (
	maxMembers = 1 << 20
	maxDepth   = 128
)

// load indexes the archive and joins it to the root. It is idempotent.
func (t *tree) load() unix.Errno {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.loaded {
		t.loaded = true
		b := bundle{ino: 1 << 32, root: t.root}
		if t.files >= 0 {
			t.bundleErr = b.index(t.files)
		}
		t.addProgram(&b)
	}
	if t.bundleErr != nil {
		return unix.EIO
	}
	return 0
}

func (t *tree) bundleError() error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.bundleErr
}

// addProgram puts the program at /bin/<name> unless the archive has something there.
func (t *tree) addProgram(b *bundle) {
	dir, name := path.Split(strings.TrimPrefix(t.program, "/"))
	if t.progNode == nil || name == "" {
		return
	}
	if d := b.dir(strings.TrimSuffix(dir, "/")); d != nil && d.entries[name] == nil {
		d.add(name, t.progNode)
	}
}

// bundle indexes one archive.
type bundle struct {
	root *node
	ino  uint64
	n    int
}

// reserved are the root's entries that an archive cannot replace.
func reserved(first string) bool {
	return first == "tmp" || first == "dev" || first == "proc" || first == "sys"
}

// index reads the headers of the archive in fd. Members whose names leave the root, or lead through something
// that is no directory, are left out; of duplicates the last counts; directories merge.
func (b *bundle) index(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("vfs: archive: %w", err)
	}
	src := &seekReader{fd: fd, size: st.Size}
	r := tar.NewReader(src)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if errors.Is(err, tar.ErrInsecurePath) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("vfs: archive: %w", err)
		}
		if b.n++; b.n > maxMembers {
			return fmt.Errorf("vfs: archive has more than %d members", maxMembers)
		}
		if err := b.member(h, fd, src.pos, st.Size); err != nil {
			return err
		}
	}
}

// clean returns the member's path below the root, or false when it has none.
func clean(name string) (string, bool) {
	if strings.ContainsRune(name, 0) || len(name) >= pathMax {
		return "", false
	}
	for c := range strings.SplitSeq(name, "/") {
		if c == ".." || len(c) > nameMax {
			return "", false
		}
	}
	p := strings.TrimPrefix(path.Clean("/"+name), "/")
	if strings.Count(p, "/") >= maxDepth {
		return "", false
	}
	return p, true
}

func (b *bundle) member(h *tar.Header, fd int, start, end int64) error {
	name, ok := clean(h.Name)
	if !ok {
		return nil
	}
	if first, _, _ := strings.Cut(name, "/"); reserved(first) {
		return nil
	}
	var n *node
	switch h.Typeflag {
	case tar.TypeDir:
		if d := b.dir(name); d != nil {
			d.mode.Store(uint32(h.Mode) & 0o7777)
			d.born(h.ModTime.UnixNano())
		}
		return nil
	case tar.TypeReg:
		if isSparse(h) {
			return fmt.Errorf("vfs: archive member %q is stored sparse, which is not supported", h.Name)
		}
		if h.Size < 0 || h.Size > end-start {
			return fmt.Errorf("vfs: archive is cut off in member %q", h.Name)
		}
		n = b.node(kindHost, h)
		n.host, n.start = fd, start
		n.bytes.Store(h.Size)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) >= pathMax || strings.ContainsRune(h.Linkname, 0) {
			return nil
		}
		n = b.node(kindSymlink, h)
		n.target = h.Linkname
	case tar.TypeLink:
		to, ok := clean(h.Linkname)
		if !ok {
			return nil
		}
		if n = b.find(to); n == nil || n.isDir() {
			return nil
		}
		n.links++
	default:
		return nil // no devices, no FIFOs
	}
	dirName, base := path.Split(name)
	dir := b.dir(strings.TrimSuffix(dirName, "/"))
	if dir == nil || base == "" {
		return nil
	}
	if old := dir.entries[base]; old != nil {
		if old.isDir() {
			return nil // a directory is not replaced by a file
		}
		old.links--
	}
	dir.entries[base] = n
	return nil
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (b *bundle) node(k kind, h *tar.Header) *node {
	b.ino++
	n := &node{kind: k, ino: b.ino, links: 1, fd: -1}
	n.mode.Store(uint32(h.Mode) & 0o7777)
	n.born(h.ModTime.UnixNano())
	return n
}

// dir returns the directory at name below the root, making what is missing; nil when something else is in
// the way.
func (b *bundle) dir(name string) *node {
	d := b.root
	if name == "" {
		return d
	}
	for c := range strings.SplitSeq(name, "/") {
		next := d.entries[c]
		if next == nil {
			b.ino++
			next = &node{kind: kindDir, ino: b.ino, links: 2, fd: -1, entries: make(map[string]*node)}
			next.mode.Store(0o755)
			next.born(d.mtime.Load())
			d.add(c, next)
		}
		if next.kind != kindDir {
			return nil
		}
		d = next
	}
	return d
}

func (b *bundle) find(name string) *node {
	n := b.root
	for c := range strings.SplitSeq(name, "/") {
		if n == nil || n.kind != kindDir {
			return nil
		}
		n = n.entries[c]
	}
	return n
}

// seekReader reads a host descriptor with a small buffer: most of an archive is skipped, not read.
type seekReader struct {
	fd   int
	pos  int64
	size int64
	buf  [4096]byte
	at   int64 // where valid begins
	have []byte
}

func (r *seekReader) Read(p []byte) (int, error) {
	if off := r.pos - r.at; off < 0 || off >= int64(len(r.have)) {
		n, err := unix.Pread(r.fd, r.buf[:], r.pos)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, io.EOF
		}
		r.at, r.have = r.pos, r.buf[:n]
	}
	n := copy(p, r.have[r.pos-r.at:])
	r.pos += int64(n)
	return n, nil
}

// Seek makes archive/tar skip contents instead of reading them. Going beyond the end is how a truncated
// archive shows, at the next Read.
func (r *seekReader) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		off += r.pos
	default:
		off += r.size
	}
	if off < 0 {
		return 0, unix.EINVAL
	}
	r.pos = off
	return off, nil
}
