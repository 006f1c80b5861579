package vfs

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/inject"
)

// event is an eventfd: the guest's own, or a doorbell shared with another VM.
type event struct {
	fd     int
	rights uint32
	shared bool        // with a peer that may change the descriptor's flags
	faults *inject.Set // of a doorbell, else nil
	call   bool        // the doorbell is a CapCall
}

func (t *Table) sysEventfd(initial, flags uint64) (uint64, unix.Errno) {
	if flags&^uint64(unix.EFD_CLOEXEC|unix.EFD_NONBLOCK|unix.EFD_SEMAPHORE) != 0 {
		return 0, unix.EINVAL
	}
	fd, err := unix.Eventfd(uint(uint32(initial)), int(flags)|unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return 0, errnoOf(err)
	}
	return t.open(&event{fd: fd, rights: abi.RightRead | abi.RightWrite}, unix.O_RDWR|int(flags)&^unix.EFD_SEMAPHORE)
}

func (v *event) read(c *Call, f *file, u *uio, _ int64) (uint64, unix.Errno) {
	if v.rights&abi.RightRead == 0 {
		return 0, unix.EBADF
	}
	if u.left < 8 {
		return 0, unix.EINVAL
	}
	for {
		n, e := v.consume(c.small[:8])
		switch {
		case e == 0:
			_, e = u.put(c.small[:8])
			return uint64(n), e
		case e == unix.EINTR:
		case e != unix.EAGAIN || f.nonblock():
			return 0, e
		default:
			if e := c.wait(v.fd, unix.POLLIN); e != 0 {
				return 0, e
			}
		}
	}
}

// consume reads the counter without ever blocking, even if the other end of a doorbell has made the shared
// descriptor blocking.
func (v *event) consume(b []byte) (int, unix.Errno) {
	n, e := readNoWait(v.fd, b)
	if e == unix.EOPNOTSUPP {
		m, err := unix.Read(v.fd, b)
		return m, errnoOf(err)
	}
	return n, e
}

func (v *event) write(c *Call, f *file, u *uio, _ int64) (uint64, unix.Errno) {
	if v.rights&abi.RightWrite == 0 {
		return 0, unix.EBADF
	}
	if u.left < 8 {
		return 0, unix.EINVAL
	}
	b := c.small[:8]
	if e := u.get(b); e != 0 {
		return 0, e
	}
	if v.shared && v.struck(c) {
		return 8, 0
	}
	for pause := time.Millisecond; ; pause = min(2*pause, maxPause) {
		n, e := 0, unix.EAGAIN
		// A counter that its peer has filled would block the write if the peer has also made the shared
		// descriptor blocking: look first.
		if !v.shared || c.ready(v.fd, unix.POLLOUT) {
			var err error
			n, err = unix.Write(v.fd, b)
			e = errnoOf(err)
		}
		switch {
		case e == 0:
			return uint64(n), 0
		case e == unix.EINTR:
			continue
		case e != unix.EAGAIN || f.nonblock():
			return 0, e
		case c.ready(v.fd, unix.POLLOUT):
			// There is room for 1 but not for this number, and nothing to poll for: look again later.
			_, err := c.Wait.Poll(nil, pause)
			e = errnoOf(err)
		default:
			e = c.wait(v.fd, unix.POLLOUT)
		}
		if e != 0 {
			return 0, e
		}
	}
}

// ring adds 1 to the counter. One that is full has rung already.
func (v *event) ring(c *Call) {
	if v.shared && v.struck(c) {
		return
	}
	v.add(c)
}

// add is ring without faults.
func (v *event) add(c *Call) {
	if !v.shared || c.ready(v.fd, unix.POLLOUT) {
		_, _ = unix.Write(v.fd, ringOnce[:])
	}
}

// ringOnce is the number that ring writes.
var ringOnce = [8]byte{1}

// maxPause is the longest time between two looks at a counter that cannot be polled for.
const maxPause = 20 * time.Millisecond

func (v *event) stat(st *stat) { st.mode = 0o600 }
func (v *event) pollFD() int   { return v.fd }
func (v *event) name() string  { return "anon_inode:[eventfd]" }
func (v *event) release()      { unix.Close(v.fd) }
