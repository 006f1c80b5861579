package initramfs

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// Tree is what an initial file system will hold. The zero Tree is empty. Paths are absolute; the folders above an entry are
// made with mode 0755 unless they are added themselves.
type Tree struct {
	entries []entry
}

// entry is one of a tree: with the bytes of data, or those of the host file source.
type entry struct {
	path   string
	data   []byte
	source string
	mode   cpio.FileMode // with the type
}

func (t *Tree) add(e entry) {
	e.path = path.Clean("/" + e.path)
	t.entries = append(t.entries, e)
}

// unixMode returns the permissions of a mode with the set-user-ID, set-group-ID and sticky bits.
func unixMode(mode fs.FileMode) cpio.FileMode {
	m := cpio.FileMode(mode.Perm())
	for _, b := range []struct {
		from fs.FileMode
		to   cpio.FileMode
	}{{fs.ModeSetuid, cpio.ModeSetuid}, {fs.ModeSetgid, cpio.ModeSetgid}, {fs.ModeSticky, cpio.ModeSticky}} {
		if mode&b.from != 0 {
			m |= b.to
		}
	}
	return m
}

// Dir adds a folder.
func (t *Tree) Dir(path string, mode fs.FileMode) {
	t.add(entry{path: path, mode: cpio.TypeDir | unixMode(mode)})
}

// Data adds a file with the given content, which is not copied.
func (t *Tree) Data(path string, b []byte, mode fs.FileMode) {
	t.add(entry{path: path, data: b, mode: cpio.TypeReg | unixMode(mode)})
}

// File adds a copy of a host file, which is read by Write.
func (t *Tree) File(path, source string, mode fs.FileMode) {
	t.add(entry{path: path, source: source, mode: cpio.TypeReg | unixMode(mode)})
}

// Symlink adds a symbolic link.
func (t *Tree) Symlink(path, target string) {
	t.add(entry{path: path, data: []byte(target), mode: cpio.TypeSymlink | 0o777})
}

// Folder adds copies of all regular files below a host folder, which need not exist, with their permissions.
func (t *Tree) Folder(to, from string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p == from {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		t.File(path.Join(to, filepath.ToSlash(rel)), p, info.Mode().Perm())
		return nil
	})
}

// Write makes an archive of the tree at out, whole or not at all. It is packed if the name ends in ".gz": that is smaller, but an emulated
// machine unpacks it more slowly than it loads it. Errors: a path that was added twice, or a file under a path that is no folder.
func (t *Tree) Write(out string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(out), ".initramfs-")
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(f.Name())
			return
		}
		err = errors.Join(os.Chmod(f.Name(), 0o644), os.Rename(f.Name(), out))
	}()
	if !strings.HasSuffix(out, ".gz") {
		return t.Encode(f)
	}
	z := gzip.NewWriter(f)
	return errors.Join(t.Encode(z), z.Close())
}

// Encode writes the archive to w, unpacked.
func (t *Tree) Encode(w io.Writer) error {
	sorted := slices.Clone(t.entries)
	slices.SortStableFunc(sorted, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	buf := bufio.NewWriterSize(w, 1<<20)
	c := cpio.NewWriter(buf)
	isDir := map[string]bool{"/": true} // what is written, and whether it is a folder
	for i, e := range sorted {
		if i > 0 && e.path == sorted[i-1].path {
			return fmt.Errorf("initial file system: %s twice", e.path)
		}
		if e.path == "/" {
			continue
		}
		if err := writeDirs(c, path.Dir(e.path), isDir); err != nil {
			return err
		}
		isDir[e.path] = e.mode&cpio.ModeType == cpio.TypeDir
		if err := writeEntry(c, &e); err != nil {
			return fmt.Errorf("initial file system: %s: %w", e.path, err)
		}
	}
	return errors.Join(c.Close(), buf.Flush())
}

// writeDirs writes dir and the directories above it that are not written yet.
func writeDirs(w *cpio.Writer, dir string, isDir map[string]bool) error {
	if folder, ok := isDir[dir]; folder {
		return nil
	} else if ok {
		return fmt.Errorf("initial file system: %s is no folder", dir)
	}
	if err := writeDirs(w, path.Dir(dir), isDir); err != nil {
		return err
	}
	isDir[dir] = true
	return w.WriteHeader(header(dir, cpio.TypeDir|0o755, 0))
}

func header(path string, mode cpio.FileMode, size int64) *cpio.Header {
	h := &cpio.Header{Name: strings.TrimPrefix(path, "/"), Mode: mode, Links: 1, Size: size}
	if mode&cpio.ModeType == cpio.TypeDir {
		h.Links = 2
	}
	return h
}

func writeEntry(w *cpio.Writer, e *entry) error {
	if e.source == "" {
		// A folder has no data; a link's are its target.
		if err := w.WriteHeader(header(e.path, e.mode, int64(len(e.data)))); err != nil {
			return err
		}
		_, err := w.Write(e.data)
		return err
	}
	f, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(header(e.path, e.mode, st.Size())); err != nil {
		return err
	}
	_, err = io.CopyN(w, f, st.Size())
	return err
}

// Concat writes archives one after the other: Linux unpacks them all, and a file of a later one replaces that of an earlier one. Each is padded to 4
// bytes, as the format requires.
func Concat(w io.Writer, archives ...io.Reader) error {
	for _, a := range archives {
		n, err := io.Copy(w, a)
		if err != nil {
			return err
		}
		if _, err := w.Write(make([]byte, -n&3)); err != nil {
			return err
		}
	}
	return nil
}
