package build

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of what a source may hold.
const (
	maxFiles    = 4 << 20
	maxPath     = 4095 // bytes (PATH_MAX without its zero)
	maxName     = 255  // bytes of one name (ext4)
	maxLinkname = 4095
	maxXattr    = 4 << 10 // bytes of a value: the most that ext4 keeps in a block
)

// ErrTooLarge reports a source that does not fit the disk.
var ErrTooLarge = errors.New("build: the content is larger than the disk")

// node is a file of the disk.
type node struct {
	mode     uint32 // with the type, as stat(2)
	uid, gid int
	mtime    int64
	size     int64
	data     string // host file with the bytes of a regular file
	link     string // target of a symbolic link
	same     string // path of which this is another name
	major    uint32
	minor    uint32
	xattrs   map[string]string
}

// content is what goes onto a disk: by path, absolute and clean.
type content struct {
	dir   string // for files' bytes
	nodes map[string]*node
	bytes int64
	limit int64
}

func newContent(dir string, limit int64) *content {
	return &content{dir: dir, limit: limit, nodes: map[string]*node{"/": {mode: unix.S_IFDIR | 0o755}}}
}

// add adds a file, in place of an earlier one of that path. The folders above it are added if they are missing.
func (c *content) add(name string, n *node) error {
	p := path.Clean("/" + name)
	if len(p) > maxPath || len(path.Base(p)) > maxName || strings.ContainsAny(p+n.link, "\n\x00") || len(n.link) > maxLinkname {
		return fmt.Errorf("build: a name that a disk cannot have: %.100q", p)
	}
	if len(c.nodes) >= maxFiles {
		return fmt.Errorf("%w: more than %d files", ErrTooLarge, maxFiles)
	}
	if old := c.nodes[p]; old != nil && old.mode&unix.S_IFMT == unix.S_IFDIR && n.mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("build: %q is a folder and something else", p)
	}
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		switch above := c.nodes[dir]; {
		case above == nil:
			c.nodes[dir] = &node{mode: unix.S_IFDIR | 0o755}
			continue
		case above.mode&unix.S_IFMT != unix.S_IFDIR:
			return fmt.Errorf("build: %q lies below %q, which is no folder", p, dir)
		}
		break
	}
	c.nodes[p] = n
	return nil
}

// keep stores a file's bytes.
func (c *content) keep(r io.Reader, size int64) (string, error) {
	if size < 0 || size > c.limit-c.bytes {
		return "", ErrTooLarge
	}
	c.bytes += size
	f, err := os.CreateTemp(c.dir, "file-")
	if err != nil {
		return "", err
	}
	_, err = io.CopyN(f, r, size)
	return f.Name(), errors.Join(err, f.Close())
}

// xattrPrefix marks extended attributes in a tar header's records.
const xattrPrefix = "SCHILY.xattr."

// addTar adds what an archive holds.
func (c *content) addTar(r io.Reader) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("build: read the archive: %w", err)
		}
		n := &node{mode: uint32(h.Mode) & 0o7777, uid: h.Uid, gid: h.Gid, mtime: h.ModTime.Unix(), size: h.Size, link: "",
			major: uint32(h.Devmajor), minor: uint32(h.Devminor)}
		if h.Uid < 0 || h.Gid < 0 {
			return fmt.Errorf("build: %.100q has no owner that a disk can have", h.Name)
		}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, xattrPrefix); ok && len(v) <= maxXattr && !strings.ContainsAny(name, " \t\n\"") {
				if n.xattrs == nil {
					n.xattrs = make(map[string]string)
				}
				n.xattrs[name] = v
			}
		}
		switch h.Typeflag {
		case tar.TypeReg:
			n.mode |= unix.S_IFREG
			if n.data, err = c.keep(t, h.Size); err != nil {
				return err
			}
		case tar.TypeDir:
			n.mode |= unix.S_IFDIR
		case tar.TypeSymlink:
			n.mode, n.link = unix.S_IFLNK|0o777, h.Linkname
		case tar.TypeLink:
			to := path.Clean("/" + h.Linkname)
			first := c.nodes[to]
			for first != nil && first.same != "" {
				to = first.same
				first = c.nodes[to]
			}
			if first == nil || first.mode&unix.S_IFMT == unix.S_IFDIR {
				return fmt.Errorf("build: %.100q is a link to %.100q, which the archive does not hold", h.Name, h.Linkname)
			}
			if path.Clean("/"+h.Name) == to {
				continue
			}
			n = &node{mode: first.mode, same: to}
		case tar.TypeChar:
			n.mode |= unix.S_IFCHR
		case tar.TypeBlock:
			n.mode |= unix.S_IFBLK
		case tar.TypeFifo:
			n.mode |= unix.S_IFIFO
		default:
			continue // a comment, or what no file system has
		}
		if err := c.add(h.Name, n); err != nil {
			return err
		}
	}
}

// addFolder adds a folder of the host. Files that one cannot read are an error; sockets are left out.
func (c *content) addFolder(dir string) error {
	first := make(map[[2]uint64]string)
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		name := path.Clean("/" + filepath.ToSlash(rel))
		n := &node{mode: st.Mode, uid: int(st.Uid), gid: int(st.Gid), mtime: st.Mtim.Sec, size: st.Size,
			major: unix.Major(st.Rdev), minor: unix.Minor(st.Rdev)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			key := [2]uint64{uint64(st.Dev), st.Ino}
			if to := first[key]; st.Nlink > 1 && to != "" {
				return c.add(name, &node{mode: st.Mode, same: to})
			}
			first[key] = name
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			if n.data, err = c.keep(f, st.Size); err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
		case unix.S_IFLNK:
			if n.link, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFSOCK:
			return nil
		}
		return c.add(name, n)
	})
}

// sorted returns all paths in the order in which they are made: a folder before what lies in it, a file before its other names.
func (c *content) sorted() []string {
	var list []string
	for p := range c.nodes {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b string) int {
		if x, y := c.nodes[a].same != "", c.nodes[b].same != ""; x != y {
			if x {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
	return list
}

// settle gives every second name to a file that is still there: a later entry of an archive may have replaced it.
func (c *content) settle() error {
	for p, n := range c.nodes {
		if n.same != "" && (c.nodes[n.same] == nil || c.nodes[n.same].same != "" || c.nodes[n.same].mode&unix.S_IFMT == unix.S_IFDIR) {
			return fmt.Errorf("build: %s is a link to %s, which was replaced", strconv.Quote(p), strconv.Quote(n.same))
		}
	}
	return nil
}
