package vfs

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/conlog"
)

// Largest host write after a poll that found room. PIPE_BUF is what a pipe then takes without blocking.
const (
	pipeChunk     = 4096
	terminalChunk = 1024
	fileChunk     = bounceSize
)

// consoleOut is one output of the guest: a host descriptor that may be shared with others, so that its
// O_NONBLOCK flag is not ours to set.
type consoleOut struct {
	k        *conlog.Console
	fd       int
	chunk    uint64
	detached bool // nobody reads it: -1 or /dev/null
	mu       sync.Mutex
	kind     uint32
}

func newConsoleOut(k *conlog.Console, fd int) *consoleOut {
	o := &consoleOut{k: k, fd: fd, chunk: pipeChunk}
	var st unix.Stat_t
	if fd < 0 || unix.Fstat(fd, &st) != nil {
		o.fd, o.detached, o.chunk, o.kind = -1, true, fileChunk, unix.S_IFCHR
		return o
	}
	o.kind = st.Mode & unix.S_IFMT
	switch {
	case o.kind == unix.S_IFREG:
		o.chunk = fileChunk
	case o.kind == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3):
		o.fd, o.detached, o.chunk = -1, true, fileChunk
	case o.kind == unix.S_IFCHR:
		o.chunk = terminalChunk
	}
	return o
}

func (o *consoleOut) read(*Call, *file, *uio, int64) (uint64, unix.Errno) { return 0, unix.EBADF }

func (o *consoleOut) write(c *Call, f *file, u *uio, _ int64) (uint64, unix.Errno) {
	var done uint64
	for u.left > 0 {
		b := c.bounceBuf()
		n, e := u.peek(b[:min(o.chunk, u.left)])
		if e == 0 {
			n, e = o.push(c, f, b[:n])
		}
		if e != 0 {
			if done > 0 {
				return done, 0
			}
			return 0, e
		}
		o.k.Record(b[:n], o.detached)
		u.advance(n)
		done += n
	}
	return done, 0
}

// push writes b, or a part of it, to the host as soon as there is room.
func (o *consoleOut) push(c *Call, f *file, b []byte) (uint64, unix.Errno) {
	if o.fd < 0 {
		return uint64(len(b)), 0
	}
	for {
		o.mu.Lock()
		e := unix.EAGAIN
		var n int
		if c.ready(o.fd, unix.POLLOUT) {
			var err error
			n, err = unix.Write(o.fd, b)
			e = errnoOf(err)
		}
		o.mu.Unlock()
		switch {
		case e == unix.EINTR:
		case e != unix.EAGAIN:
			return uint64(max(n, 0)), e
		case f.nonblock():
			return 0, e
		default:
			if e := c.wait(o.fd, unix.POLLOUT); e != 0 {
				return 0, e
			}
		}
	}
}

func (o *consoleOut) stat(st *stat) { hostStat(o.fd, st) }
func (o *consoleOut) pollFD() int   { return o.fd }
func (o *consoleOut) name() string  { return "/dev/console" }
func (o *consoleOut) release()      {}

func (o *consoleOut) ioctl(c *Call, f *file, req, arg uint64) (uint64, unix.Errno) {
	return terminalIoctl(c, o.fd, req, arg)
}

func (o *consoleOut) sync() unix.Errno { return unix.EINVAL }

// consoleIn is the guest's standard input. With out set it is a terminal and can be written as well.
type consoleIn struct {
	fd  int
	out *consoleOut
	mu  sync.Mutex // one reader at a time between its poll and its read
}

func (i *consoleIn) read(c *Call, f *file, u *uio, _ int64) (uint64, unix.Errno) {
	if i.fd < 0 || u.left == 0 {
		return 0, 0
	}
	for {
		i.mu.Lock()
		e := unix.EAGAIN
		var n uint64
		if c.ready(i.fd, unix.POLLIN) {
			n, e = u.transfer(i.fd, -1, bounceSize)
		}
		i.mu.Unlock()
		switch {
		case e == unix.EINTR:
		case e != unix.EAGAIN || f.nonblock():
			return n, e
		default:
			if e := c.wait(i.fd, unix.POLLIN); e != 0 {
				return 0, e
			}
		}
	}
}

func (i *consoleIn) write(c *Call, f *file, u *uio, off int64) (uint64, unix.Errno) {
	if i.out == nil {
		return 0, unix.EBADF
	}
	return i.out.write(c, f, u, off)
}

// seek works where the host's standard input is a file.
func (i *consoleIn) seek(off int64, whence int) (uint64, unix.Errno) {
	if i.fd < 0 {
		return 0, 0 // as /dev/null
	}
	n, err := unix.Seek(i.fd, off, whence)
	return uint64(n), errnoOf(err)
}

func (i *consoleIn) stat(st *stat) { hostStat(i.fd, st) }
func (i *consoleIn) pollFD() int   { return i.fd }
func (i *consoleIn) name() string  { return "/dev/console" }
func (i *consoleIn) release()      {}

func (i *consoleIn) ioctl(c *Call, f *file, req, arg uint64) (uint64, unix.Errno) {
	return terminalIoctl(c, i.fd, req, arg)
}

func isTerminal(fd int) bool {
	if fd < 0 {
		return false
	}
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}
