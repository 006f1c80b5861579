package vfs

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/inject"
)

// device is a host file or block device delegated to the guest. Its size is fixed.
type device struct {
	t      *Table
	fd     int
	bytes  int64
	rights uint32
	label  string
	id     uint64 // see Mapping.Object
	// uncached is set when the host cannot read without waiting; see Call.readCached.
	uncached atomic.Bool
	faults   faults
	fixed    int64 // size of the host's file when the guest got it; 0 for what is no regular file
}

// regularSize returns the size of a regular file, and 0 for anything else.
func regularSize(fd int) int64 {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0
	}
	return st.Size
}

// unchanged reports whether d is a regular file that has the size that it had at first, so that all mappings of it can
// be parts of one.
func (d *device) unchanged() bool { return d.fixed != 0 && d.fixed == regularSize(d.fd) }

func (d *device) read(c *Call, _ *file, u *uio, off int64) (uint64, unix.Errno) {
	if off >= d.bytes {
		return 0, 0
	}
	defer d.t.busyOn()()
	most := uint64(d.bytes - off)
	if f := d.t.Faults.IO.Load(); f != nil {
		var e unix.Errno
		if most, e = faulty(f, c, inject.OpRead, min(most, u.left)); e != 0 {
			return 0, e
		}
	}
	return u.transferAll(d.fd, off, most)
}

func (d *device) write(c *Call, _ *file, u *uio, off int64) (uint64, unix.Errno) {
	switch {
	case u.left == 0:
		return 0, 0
	case off >= d.bytes:
		return 0, unix.ENOSPC
	}
	defer d.t.busyOn()()
	most := uint64(d.bytes - off)
	if f := d.t.Faults.IO.Load(); f != nil {
		var e unix.Errno
		if most, e = faulty(f, c, inject.OpWrite, min(most, u.left)); e != 0 {
			return 0, e
		}
	}
	return u.transferAll(d.fd, off, most)
}

func (d *device) size() int64 { return d.bytes }

func (d *device) sync() unix.Errno {
	defer d.t.busyOn()()
	if f := d.t.Faults.IO.Load(); f != nil {
		if _, e := faulty(f, nil, inject.OpFlush, 0); e != 0 {
			return e
		}
	}
	return fdatasync(d.fd)
}

func fdatasync(fd int) unix.Errno {
	for {
		if err := unix.Fdatasync(fd); err != unix.EINTR {
			return errnoOf(err)
		}
	}
}

func (d *device) truncate(n int64) unix.Errno {
	if n == d.bytes {
		return 0
	}
	return unix.EINVAL
}

// allocate serves the modes that keep the size.
func (d *device) allocate(mode uint32, off, n int64) unix.Errno {
	if !d.inside(uint64(off), uint64(n)) {
		return unix.EINVAL
	}
	defer d.t.busyOn()()
	switch mode {
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		return d.discard(off, n)
	case unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		return d.zero(off, n, false)
	}
	return unix.EOPNOTSUPP
}

// inside reports whether [off, off+n) lies in the device.
func (d *device) inside(off, n uint64) bool {
	return off <= uint64(d.bytes) && n <= uint64(d.bytes)-off
}

func fallocate(fd int, mode uint32, off, n int64) unix.Errno {
	for {
		if err := unix.Fallocate(fd, mode, off, n); err != unix.EINTR {
			return errnoOf(err)
		}
	}
}

func (d *device) discard(off, n int64) unix.Errno {
	return fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// zero makes the range read as zeroes, by the host's own means if it has them, else by writing.
func (d *device) zero(off, n int64, unmap bool) unix.Errno {
	if unmap {
		if e := d.discard(off, n); e == 0 {
			return 0
		}
	}
	e := fallocate(d.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if e != unix.EOPNOTSUPP && e != unix.EINVAL {
		return e
	}
	for n > 0 {
		k, err := unix.Pwrite(d.fd, zeroBlock[:min(n, bounceSize)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return errnoOf(err)
		}
		if k == 0 {
			return unix.EIO
		}
		off, n = off+int64(k), n-int64(k)
	}
	return 0
}

func (d *device) stat(st *stat) {
	st.mode, st.size, st.blocks = unix.S_IFREG, d.bytes, uint64(d.bytes)/512
	if d.rights&abi.RightRead != 0 {
		st.mode |= 0o400
	}
	if d.rights&abi.RightWrite != 0 {
		st.mode |= 0o200
	}
}
func (d *device) pollFD() int  { return -1 }
func (d *device) name() string { return "grail:device:" + d.label }
func (d *device) release()     { unix.Close(d.fd) }

func nothing() {}

// busyOn counts a device call in Config.Busy and returns what ends it.
func (t *Table) busyOn() func() {
	if t.busy == nil {
		return nothing
	}
	t.busy.Add(1)
	return t.busyOff
}

func (t *Table) busyOff() { t.busy.Add(^uint64(0)) }
