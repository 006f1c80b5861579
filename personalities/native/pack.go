package native

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Packed says what Pack did.
type Packed struct {
	Files   int   // regular files
	Links   int   // symbolic links
	Dirs    int   // directories, the root not counted
	Skipped int   // devices, sockets and pipes, which a guest cannot have
	Bytes   int64 // content of the regular files
}

// progressEvery is how often Pack reports.
const progressEvery = 100 * time.Millisecond

// Pack writes the tree beneath dir to w as an uncompressed tar archive, the guest's read-only root: sorted by
// name within each directory, with modes and modification times, without owners. The same tree makes the same
// archive. Symbolic links are kept as they are and never followed, dir itself excepted. Memory use does not
// depend on the tree's size. progress, if not nil, is called now and then, and once at the end. Errors: dir is
// no directory; a file that cannot be read or changes its size meanwhile; ctx's; those of w.
func Pack(ctx context.Context, dir string, w io.Writer, progress func(files int, bytes int64)) (Packed, error) {
	var p Packed
	st, err := os.Stat(dir)
	if err != nil {
		return p, err
	}
	if !st.IsDir() {
		return p, fmt.Errorf("%s: not a directory; --files expects the directory that becomes the guest's root", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return p, err
	}
	defer root.Close()
	buffered := bufio.NewWriterSize(w, 1<<20)
	k := &packer{ctx: ctx, root: root, tar: tar.NewWriter(buffered), progress: progress, last: time.Now()}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && name != "." {
			err = k.add(name, d)
		}
		return err
	})
	if err != nil {
		return k.done, fmt.Errorf("packing %s: %w", dir, err)
	}
	if err := k.tar.Close(); err != nil {
		return k.done, err
	}
	if err := buffered.Flush(); err != nil {
		return k.done, err
	}
	if progress != nil {
		progress(k.done.Files, k.done.Bytes)
	}
	return k.done, nil
}

// packer is a Pack in progress.
type packer struct {
	ctx      context.Context
	root     *os.Root
	tar      *tar.Writer
	done     Packed
	progress func(files int, bytes int64)
	last     time.Time
}

func (k *packer) add(name string, d fs.DirEntry) error {
	info, err := d.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed since the directory was read
	}
	if err != nil {
		return err
	}
	h := &tar.Header{
		Name: filepath.ToSlash(name), Mode: unixMode(info.Mode()), ModTime: info.ModTime().Truncate(time.Second),
	}
	switch {
	case info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		k.done.Dirs++
		return k.tar.WriteHeader(h)
	case info.Mode()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = k.root.Readlink(name); err != nil {
			return err
		}
		k.done.Links++
		return k.tar.WriteHeader(h)
	case info.Mode().IsRegular():
		return k.file(name, h)
	}
	k.done.Skipped++
	return nil
}

// file writes a regular file, whose size is what it has when it is opened.
func (k *packer) file(name string, h *tar.Header) error {
	f, err := k.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s: changed while it was packed", name)
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := k.tar.WriteHeader(h); err != nil {
		return err
	}
	for left := h.Size; left > 0; {
		n, err := io.CopyN(k.tar, f, min(left, 64<<20))
		left -= n
		k.done.Bytes += n
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: became shorter while it was packed", name)
		}
		if err != nil {
			return err
		}
		if err := k.ctx.Err(); err != nil {
			return err
		}
		k.report()
	}
	k.done.Files++
	k.report()
	return nil
}

func (k *packer) report() {
	if k.progress != nil && time.Since(k.last) >= progressEvery {
		k.last = time.Now()
		k.progress(k.done.Files, k.done.Bytes)
	}
}

func unixMode(m fs.FileMode) int64 {
	n := int64(m.Perm())
	for _, b := range []struct {
		mode fs.FileMode
		unix int64
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&b.mode != 0 {
			n |= b.unix
		}
	}
	return n
}
