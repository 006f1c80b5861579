package vfs

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// object is what an open file description stands for. off is a byte position, or -1 for an object
// without positions.
type object interface {
	read(c *Call, f *file, u *uio, off int64) (uint64, unix.Errno)
	write(c *Call, f *file, u *uio, off int64) (uint64, unix.Errno)
	stat(st *stat)
	// pollFD returns the host descriptor whose readiness is the object's, or -1 when it is always ready.
	pollFD() int
	// name is what readlink of /proc/self/fd/N says.
	name() string
	release()
}

// Optional facets of an object.
type (
	// seekable objects have positions and a size.
	seekable interface{ size() int64 }
	syncer   interface{ sync() unix.Errno }
	resizer  interface {
		truncate(n int64) unix.Errno
		allocate(mode uint32, off, n int64) unix.Errno
	}
	ioctler interface {
		ioctl(c *Call, f *file, req, arg uint64) (uint64, unix.Errno)
	}
)

// file is a Linux open file description.
type file struct {
	obj   object
	flags atomic.Uint32 // access mode, O_APPEND, O_NONBLOCK, O_PATH, O_DIRECTORY
	refs  atomic.Int32  // slots plus calls in progress

	mu  sync.Mutex // serialises calls that use pos
	pos int64

	watchMu  sync.Mutex
	watchers map[*epoll]struct{}
}

func newFile(o object, flags int) *file {
	f := &file{obj: o}
	f.flags.Store(uint32(flags))
	return f
}

func (f *file) put() {
	if f.refs.Add(-1) == 0 {
		f.unwatch()
		f.obj.release()
	}
}

func (f *file) nonblock() bool { return f.flags.Load()&unix.O_NONBLOCK != 0 }
func (f *file) isPath() bool   { return f.flags.Load()&unix.O_PATH != 0 }

func (f *file) readable() bool {
	fl := f.flags.Load()
	return fl&unix.O_ACCMODE != unix.O_WRONLY && fl&unix.O_PATH == 0
}

func (f *file) writable() bool {
	fl := f.flags.Load()
	return fl&unix.O_ACCMODE != unix.O_RDONLY && fl&unix.O_PATH == 0
}

// io performs one read (u.write) or write at off, or at the file's position when off is -1.
func (f *file) io(c *Call, u *uio, off int64) (uint64, unix.Errno) {
	if u.write && !f.readable() || !u.write && !f.writable() {
		return 0, unix.EBADF
	}
	move := func(off int64) (uint64, unix.Errno) {
		if u.write {
			return f.obj.read(c, f, u, off)
		}
		return f.obj.write(c, f, u, off)
	}
	_, positions := f.obj.(seekable)
	if !positions {
		if off >= 0 {
			return 0, unix.ESPIPE
		}
		return move(-1)
	}
	toEnd := !u.write && f.flags.Load()&unix.O_APPEND != 0
	if off >= 0 {
		if toEnd { // also pwrite appends then: see BUGS in pwrite(2)
			off = appendAt
		}
		return move(off)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !toEnd {
		n, e := move(f.pos)
		f.pos += int64(n)
		return n, e
	}
	n, e := move(appendAt)
	if n > 0 {
		f.pos = f.obj.(seekable).size()
	}
	return n, e
}

// appendAt as an offset asks a write to start at the end of the file.
const appendAt = 1<<63 - 1

// noIO is embedded by objects that can neither be read nor written.
type noIO struct{}

func (noIO) read(*Call, *file, *uio, int64) (uint64, unix.Errno)  { return 0, unix.EINVAL }
func (noIO) write(*Call, *file, *uio, int64) (uint64, unix.Errno) { return 0, unix.EINVAL }
