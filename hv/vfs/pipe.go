package vfs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// pipeEnd is one end of a pipe of the guest's own: a non-blocking host pipe.
type pipeEnd struct {
	t  *Table
	fd int
}

// maxPipes bounds a guest's pipes: each may fill 64 KiB of the host's memory.
const maxPipes = 512

func (t *Table) sysPipe(c *Call, addr, flags uint64) (uint64, unix.Errno) {
	if flags&^uint64(unix.O_CLOEXEC|unix.O_NONBLOCK) != 0 {
		return 0, unix.EINVAL
	}
	if t.pipes.Load() >= 2*maxPipes { // counted by ends
		return 0, unix.ENFILE
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return 0, errnoOf(err)
	}
	t.pipes.Add(2)
	r, e := t.open(&pipeEnd{t, p[0]}, unix.O_RDONLY|int(flags))
	if e != 0 {
		(&pipeEnd{t, p[1]}).release()
		return 0, e
	}
	w, e := t.open(&pipeEnd{t, p[1]}, unix.O_WRONLY|int(flags))
	if e != 0 {
		t.drop(int(r))
		return 0, e
	}
	e = c.storeU64(addr, r|w<<32)
	if e != 0 {
		t.drop(int(r))
		t.drop(int(w))
	}
	return 0, e
}

func (p *pipeEnd) read(c *Call, f *file, u *uio, _ int64) (uint64, unix.Errno) {
	return readStream(c, f, u, p.fd)
}

func (p *pipeEnd) write(c *Call, f *file, u *uio, _ int64) (uint64, unix.Errno) {
	return writeStream(c, f, u, p.fd)
}

func (p *pipeEnd) stat(st *stat) { st.mode = unix.S_IFIFO | 0o600 }
func (p *pipeEnd) pollFD() int   { return p.fd }
func (p *pipeEnd) name() string  { return fmt.Sprintf("pipe:[%d]", p.fd) }
func (p *pipeEnd) release() {
	unix.Close(p.fd)
	p.t.pipes.Add(-1)
}
func (p *pipeEnd) ioctl(c *Call, _ *file, req, arg uint64) (uint64, unix.Errno) {
	return streamIoctl(c, p.fd, req, arg)
}

// readStream reads once from a non-blocking host descriptor, waiting for data unless f forbids it.
func readStream(c *Call, f *file, u *uio, fd int) (uint64, unix.Errno) {
	if u.left == 0 {
		return 0, 0
	}
	for {
		n, e := u.transfer(fd, -1, maxRW)
		if e == unix.EINTR {
			continue
		}
		if e != unix.EAGAIN || f.nonblock() {
			return n, e
		}
		if e := c.wait(fd, unix.POLLIN); e != 0 {
			return 0, e
		}
	}
}

// writeStream writes all of u to a non-blocking host descriptor, waiting for room unless f forbids it.
func writeStream(c *Call, f *file, u *uio, fd int) (uint64, unix.Errno) {
	var done uint64
	for u.left > 0 {
		n, e := u.transfer(fd, -1, maxRW)
		done += n
		switch {
		case e == 0 || e == unix.EINTR:
			continue
		case e == unix.EAGAIN && !f.nonblock():
			if e = c.wait(fd, unix.POLLOUT); e == 0 {
				continue
			}
		}
		if done > 0 {
			return done, 0
		}
		return 0, e
	}
	return done, 0
}

// streamIoctl answers the requests that any stream knows.
func streamIoctl(c *Call, fd int, req, arg uint64) (uint64, unix.Errno) {
	if uint32(req) != unix.TIOCINQ { // FIONREAD
		return 0, unix.ENOTTY
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0, errnoOf(err)
	}
	return 0, c.storeU32(arg, uint32(n))
}
