package vfs

import (
	"bytes"
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/inject"
)

// Mem is a guest's memory as the engine sees it. Its methods must not call a Mapping's Source or the Table.
type Mem interface {
	// CopyIn fills b from guest memory at addr, and CopyOut does the reverse. Any error is EFAULT for
	// the guest; what was copied before it is unspecified.
	CopyIn(addr uint64, b []byte) error
	CopyOut(addr uint64, b []byte) error
	// Segments appends host slices for guest memory [addr, addr+n) to dst; write says that the host is
	// going to write there. The pages stay until release is called; release may be nil. ok is false
	// when the engine cannot lend its memory; CopyIn and CopyOut serve then.
	Segments(addr, n uint64, write bool, dst [][]byte) (segs [][]byte, release func(), ok bool, err error)
}

// Waiter blocks the calling guest thread.
type Waiter interface {
	// Poll is poll(2) on host descriptors; a negative timeout means for ever. It returns unix.EINTR
	// when the thread must handle a signal or end.
	Poll(fds []unix.PollFd, timeout time.Duration) (int, error)
}

// Call is what a guest thread brings to its system calls. Keep one a thread: it holds the buffers that make
// calls free of allocation. It is not safe for concurrent use.
type Call struct {
	Mem    Mem
	Wait   Waiter
	Thread int // for the caller's own use
	// Mask replaces the thread's signal mask for the duration of one waiting call (ppoll, pselect6,
	// epoll_pwait) and returns what puts the old one back. When nil, such masks are ignored.
	Mask func(set uint64) (restore func())

	in, out  uio
	vecs     []vec
	iov      []unix.Iovec
	small    [256]byte
	one      [1]unix.PollFd
	pathBuf  []byte
	bounce   []byte
	polls    []unix.PollFd
	pollIdx  []int32
	pollWire []byte
	held     []*file
	events   []unix.EpollEvent
	reqs     []byte
	segWire  []byte
	packet   []byte
	short    *inject.Armed // cuts the device request at hand short; nil: nothing does
}

// Bounds of one call.
const (
	bounceSize = 64 << 10
	pathMax    = 4096
	nameMax    = 255
	maxRW      = 0x7ffff000 // Linux's MAX_RW_COUNT
	maxIov     = 1024       // Linux's UIO_MAXIOV
	pageSize   = 4096
)

func (c *Call) bounceBuf() []byte {
	if c.bounce == nil {
		c.bounce = make([]byte, bounceSize)
	}
	return c.bounce
}

func (c *Call) copyIn(addr uint64, b []byte) unix.Errno {
	if addr+uint64(len(b)) < addr {
		return unix.EFAULT
	}
	if len(b) != 0 && c.Mem.CopyIn(addr, b) != nil {
		return unix.EFAULT
	}
	return 0
}

func (c *Call) copyOut(addr uint64, b []byte) unix.Errno {
	if addr+uint64(len(b)) < addr {
		return unix.EFAULT
	}
	if len(b) != 0 && c.Mem.CopyOut(addr, b) != nil {
		return unix.EFAULT
	}
	return 0
}

func (c *Call) loadU64(addr uint64) (uint64, unix.Errno) {
	e := c.copyIn(addr, c.small[:8])
	return binary.LittleEndian.Uint64(c.small[:8]), e
}

func (c *Call) storeU64(addr, v uint64) unix.Errno {
	binary.LittleEndian.PutUint64(c.small[:8], v)
	return c.copyOut(addr, c.small[:8])
}

func (c *Call) storeU32(addr uint64, v uint32) unix.Errno {
	binary.LittleEndian.PutUint32(c.small[:4], v)
	return c.copyOut(addr, c.small[:4])
}

// path copies a NUL-terminated path, at most pathMax bytes with its NUL. It never reads beyond the page
// that holds the NUL.
func (c *Call) path(addr uint64) (string, unix.Errno) {
	if c.pathBuf == nil {
		c.pathBuf = make([]byte, pathMax)
	}
	for n := 0; n < pathMax; {
		at := addr + uint64(n)
		step := min(256, pageSize-int(at%pageSize), pathMax-n)
		if e := c.copyIn(at, c.pathBuf[n:n+step]); e != 0 {
			return "", e
		}
		if i := bytes.IndexByte(c.pathBuf[n:n+step], 0); i >= 0 {
			return string(c.pathBuf[:n+i]), 0
		}
		n += step
	}
	return "", unix.ENAMETOOLONG
}

// timespec reads a struct timespec as a duration, saturating.
func (c *Call) timespec(addr uint64) (time.Duration, unix.Errno) {
	if e := c.copyIn(addr, c.small[:16]); e != 0 {
		return 0, e
	}
	return duration(int64(binary.LittleEndian.Uint64(c.small[:8])), int64(binary.LittleEndian.Uint64(c.small[8:16])), 1)
}

func duration(sec, sub, unit int64) (time.Duration, unix.Errno) {
	if sec < 0 || sub < 0 || sub >= int64(time.Second)/unit {
		return 0, unix.EINVAL
	}
	const most = int64(1<<63-1)/int64(time.Second) - 1
	return time.Duration(min(sec, most)*int64(time.Second) + sub*unit), 0
}

// wait blocks until the host descriptor fd shows one of events.
func (c *Call) wait(fd int, events int16) unix.Errno {
	c.one[0] = unix.PollFd{Fd: int32(fd), Events: events}
	_, err := c.Wait.Poll(c.one[:], -1)
	return errnoOf(err)
}

// ready reports whether the host descriptor fd shows one of events, an error or a hang-up, now.
func (c *Call) ready(fd int, events int16) bool {
	c.one[0] = unix.PollFd{Fd: int32(fd), Events: events}
	n, err := unix.Poll(c.one[:], 0)
	return err == nil && n > 0
}

// masked runs f with the signal mask whose address and size a waiting call was given.
func (c *Call) masked(addr, size uint64, f func() (uint64, unix.Errno)) (uint64, unix.Errno) {
	if addr == 0 {
		return f()
	}
	if size != 8 {
		return 0, unix.EINVAL
	}
	set, e := c.loadU64(addr)
	if e != 0 {
		return 0, e
	}
	if c.Mask != nil {
		defer c.Mask(set)()
	}
	return f()
}

func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if e, ok := err.(unix.Errno); ok {
		return e
	}
	return unix.EIO
}
