package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"time"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/filesystem/ext4"
)

// FS is a mounted ext4 file system, read-only. go-diskfs mounts it and reads its directories and inodes. It
// does not read its files: go-diskfs v1.9.4 returns neighbouring blocks for the holes of sparse files, and
// mke2fs -d makes a hole of every block of zeroes. Their extents are read here.
type FS struct {
	disk   io.ReaderAt
	fs     *ext4.FileSystem
	inodes *inodeTable
}

// File is a regular file.
type File struct {
	Path  string // relative to the root, without a leading slash
	Size  int64
	Inode uint32
}

// Mount mounts the file system on disk. go-diskfs wants one with metadata checksums, which is the default of
// mke2fs.
func Mount(disk io.ReaderAt, size int64) (*FS, error) {
	c := newCache(disk, size)
	f, err := ext4.Read(&storage{ReaderAt: c, size: size}, size, 0, 512)
	if err != nil {
		return nil, fmt.Errorf("no ext4 file system: %w", err)
	}
	t, err := readInodeTable(c)
	if err != nil {
		return nil, err
	}
	return &FS{disk: disk, fs: f, inodes: t}, nil
}

// Files returns all regular files, sorted by path.
func (f *FS) Files() ([]File, error) {
	var files []File
	err := fs.WalkDir(f.fs, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*ext4.StatT)
		if !ok {
			return fmt.Errorf("%s: no inode number", p)
		}
		files = append(files, File{Path: p, Size: info.Size(), Inode: st.Ino})
		return nil
	})
	if err != nil {
		return nil, err
	}
	sort.Slice(files, func(i, j int) bool { return files[i].Path < files[j].Path })
	return files, nil
}

// Open returns the content of file.
func (f *FS) Open(file File) (io.ReaderAt, error) {
	e, err := f.inodes.extents(file.Inode)
	if err != nil {
		return nil, err
	}
	return &content{disk: f.disk, block: f.inodes.block, extents: e, size: file.Size}, nil
}

// storage is a disk as go-diskfs wants it.
type storage struct {
	io.ReaderAt
	size, pos int64
}

var _ backend.Storage = (*storage)(nil)

func (s *storage) Read(p []byte) (int, error) {
	n, err := s.ReadAt(p, s.pos)
	s.pos += int64(n)
	return n, err
}

func (s *storage) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += s.pos
	case io.SeekEnd:
		off += s.size
	}
	if off < 0 {
		return 0, errors.New("seek before the start")
	}
	s.pos = off
	return off, nil
}

func (s *storage) Close() error                            { return nil }
func (s *storage) Stat() (fs.FileInfo, error)              { return storageInfo{s.size}, nil }
func (s *storage) Sys() (*os.File, error)                  { return nil, backend.ErrNotSuitable }
func (s *storage) Writable() (backend.WritableFile, error) { return nil, backend.ErrIncorrectOpenMode }
func (s *storage) Path() string                            { return "" }

type storageInfo struct{ size int64 }

func (i storageInfo) Name() string       { return "disk" }
func (i storageInfo) Size() int64        { return i.size }
func (i storageInfo) Mode() fs.FileMode  { return 0o444 }
func (i storageInfo) ModTime() time.Time { return time.Time{} }
func (i storageInfo) IsDir() bool        { return false }
func (i storageInfo) Sys() any           { return nil }
