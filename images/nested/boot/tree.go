package main

import (
	"bufio"
	"encoding/json"
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

	"github.com/grailos/grail/images/nested/plan"
)

// tree is what an initial file system will hold.
type tree struct {
	dirs  []string // beside those that hold files
	files []entry
}

// entry is a file of a tree: the bytes of data, or those of the host file source.
type entry struct {
	path   string
	data   []byte
	source string
	mode   cpio.FileMode
}

// dir adds a folder.
func (t *tree) dir(path string) { t.dirs = append(t.dirs, path) }

// data adds a file with the given content.
func (t *tree) data(path string, b []byte, mode cpio.FileMode) {
	t.files = append(t.files, entry{path: path, data: b, mode: mode})
}

// file adds a copy of a host file.
func (t *tree) file(path, source string, mode cpio.FileMode) {
	t.files = append(t.files, entry{path: path, source: source, mode: mode})
}

// write makes an archive of the tree and of p at out, in the format that Linux unpacks at start
// (Documentation/driver-api/early-userspace/buffer-format.rst). It is not compressed: unpacking it inside an
// emulated machine would take longer than loading it.
func (t *tree) write(out string, p *plan.Plan) (err error) {
	b, err := json.MarshalIndent(p, "", "\t")
	if err != nil {
		return err
	}
	files := append(slices.Clone(t.files), entry{path: plan.Path, data: b, mode: 0o644})
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := bufio.NewWriterSize(f, 1<<20)
	w := cpio.NewWriter(buf)
	made := map[string]bool{"/": true}
	for _, d := range t.dirs {
		if err := writeDirs(w, d, made); err != nil {
			return err
		}
	}
	for _, e := range files {
		if made[e.path] {
			return fmt.Errorf("initial file system: %s twice", e.path)
		}
		made[e.path] = true
		if err := writeDirs(w, path.Dir(e.path), made); err != nil {
			return err
		}
		if err := writeEntry(w, &e); err != nil {
			return fmt.Errorf("initial file system: %s: %w", e.path, err)
		}
	}
	return errors.Join(w.Close(), buf.Flush())
}

// writeDirs writes dir and the directories above it that are not made yet.
func writeDirs(w *cpio.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	if err := writeDirs(w, path.Dir(dir), made); err != nil {
		return err
	}
	made[dir] = true
	return w.WriteHeader(&cpio.Header{Name: strings.TrimPrefix(dir, "/"), Mode: cpio.TypeDir | 0o755, Links: 2})
}

func writeEntry(w *cpio.Writer, e *entry) error {
	h := &cpio.Header{Name: strings.TrimPrefix(e.path, "/"), Mode: cpio.TypeReg | e.mode, Links: 1, Size: int64(len(e.data))}
	if e.source == "" {
		if err := w.WriteHeader(h); err != nil {
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
	h.Size = st.Size()
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(w, f, h.Size)
	return err
}

// folder adds copies of all regular files below a host folder, which need not exist.
func (t *tree) folder(to, from string) error {
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
		t.file(path.Join(to, filepath.ToSlash(rel)), p, cpio.FileMode(info.Mode().Perm()))
		return nil
	})
}
