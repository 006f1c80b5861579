package vfs

import "golang.org/x/sys/unix"

// sysRW serves read, write, pread64 and pwrite64; off is -1 for the first two.
func (t *Table) sysRW(c *Call, fd, addr, n uint64, off int64, read bool) (uint64, unix.Errno) {
	if n > 1<<63-1 {
		return 0, unix.EINVAL
	}
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	c.in.set1(c, addr, n, read)
	return f.io(c, &c.in, off)
}

// sysRWV serves readv, writev, preadv, pwritev and their second versions.
func (t *Table) sysRWV(c *Call, fd, iov, n uint64, off int64, read bool) (uint64, unix.Errno) {
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	if e := c.in.setIov(c, iov, n, read); e != 0 {
		return 0, e
	}
	return f.io(c, &c.in, off)
}

// position checks the offset argument of pread64 and its like.
func position(off uint64) (int64, unix.Errno) {
	if int64(off) < 0 || int64(off) == appendAt {
		return 0, unix.EINVAL
	}
	return int64(off), 0
}

func (t *Table) sysPRW(c *Call, fd, addr, n, off uint64, read bool) (uint64, unix.Errno) {
	p, e := position(off)
	if e != 0 {
		return 0, e
	}
	return t.sysRW(c, fd, addr, n, p, read)
}

func (t *Table) sysPRWV(c *Call, fd, iov, n, off uint64, read bool) (uint64, unix.Errno) {
	p, e := position(off)
	if e != 0 {
		return 0, e
	}
	return t.sysRWV(c, fd, iov, n, p, read)
}

// sysPRWV2 serves preadv2 and pwritev2, without flags.
func (t *Table) sysPRWV2(c *Call, fd, iov, n, off, flags uint64, read bool) (uint64, unix.Errno) {
	if flags != 0 {
		return 0, unix.EOPNOTSUPP
	}
	if int64(off) == -1 {
		return t.sysRWV(c, fd, iov, n, -1, read)
	}
	return t.sysPRWV(c, fd, iov, n, off, read)
}

func (t *Table) sysLseek(fd, off, whence uint64) (uint64, unix.Errno) {
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	if f.isPath() {
		return 0, unix.EBADF
	}
	if s, ok := f.obj.(interface {
		seek(off int64, whence int) (uint64, unix.Errno)
	}); ok {
		return s.seek(int64(off), int(int32(whence)))
	}
	s, ok := f.obj.(seekable)
	if !ok {
		return 0, unix.ESPIPE
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	size := s.size()
	base, delta := int64(0), int64(off)
	switch whence {
	case unix.SEEK_SET:
	case unix.SEEK_CUR:
		base = f.pos
	case unix.SEEK_END:
		base = size
	case unix.SEEK_DATA, unix.SEEK_HOLE: // one piece of data, a hole at the end
		if delta < 0 || delta >= size {
			return 0, unix.ENXIO
		}
		if whence == unix.SEEK_HOLE {
			delta = size
		}
	default:
		return 0, unix.EINVAL
	}
	p := base + delta
	if p < 0 || delta > 0 && p < base || p == appendAt {
		return 0, unix.EINVAL
	}
	f.pos = p
	return uint64(p), 0
}

func (t *Table) sysSync(fd uint64) (uint64, unix.Errno) {
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	if f.isPath() {
		return 0, unix.EBADF
	}
	if s, ok := f.obj.(syncer); ok {
		return 0, s.sync()
	}
	return 0, unix.EINVAL
}

func (t *Table) sysFtruncate(fd, n uint64) (uint64, unix.Errno) {
	if int64(n) < 0 {
		return 0, unix.EINVAL
	}
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	r, ok := f.obj.(resizer)
	if f.isPath() {
		return 0, unix.EBADF
	}
	if !ok || !f.writable() {
		return 0, unix.EINVAL
	}
	return 0, r.truncate(int64(n))
}

func (t *Table) sysFallocate(fd, mode, off, n uint64) (uint64, unix.Errno) {
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	o, l := int64(off), int64(n)
	switch r, ok := f.obj.(resizer); {
	case o < 0 || l <= 0:
		return 0, unix.EINVAL
	case !f.writable():
		return 0, unix.EBADF
	case o+l < 0:
		return 0, unix.EFBIG
	case !ok:
		return 0, unix.ENODEV
	default:
		return 0, r.allocate(uint32(mode), o, l)
	}
}

// sysSendfile serves sendfile, and copy_file_range through copyFiles.
func (t *Table) sysSendfile(c *Call, out, in, offAddr, n uint64) (uint64, unix.Errno) {
	return t.copyFiles(c, in, offAddr, out, 0, n)
}

// copyFiles moves up to n bytes from one file to another; offset addresses of 0 mean the files' own positions.
func (t *Table) copyFiles(c *Call, in, inOff, out, outOff, n uint64) (uint64, unix.Errno) {
	src, e := t.get(in)
	if e != 0 {
		return 0, e
	}
	defer src.put()
	dst, e := t.get(out)
	if e != 0 {
		return 0, e
	}
	defer dst.put()
	if !src.readable() || !dst.writable() {
		return 0, unix.EBADF
	}
	s, ok := src.obj.(*openNode)
	if !ok {
		return 0, unix.EINVAL
	}
	if s.n.isDir() {
		return 0, unix.EISDIR
	}
	if d, ok := dst.obj.(*openNode); ok && (d.n == s.n || dst.flags.Load()&unix.O_APPEND != 0) {
		return 0, unix.EINVAL
	}
	from, e := c.startOffset(inOff)
	if e != 0 {
		return 0, e
	}
	to, e := c.startOffset(outOff)
	if e != 0 {
		return 0, e
	}
	if from < 0 {
		src.mu.Lock()
		from = src.pos
		src.mu.Unlock()
	}
	var done uint64
	n = min(n, maxCopy)
	for done < n {
		b := c.bounceBuf()
		b = b[:min(n-done, uint64(len(b)))]
		c.out.setHost(c, b, true)
		got, e := src.obj.read(c, src, &c.out, from)
		if got == 0 || e != 0 {
			break
		}
		c.out.setHost(c, b[:got], false)
		put, e2 := dst.io(c, &c.out, to)
		if e2 != 0 && done == 0 {
			return 0, e2
		}
		from, done = from+int64(put), done+put
		if to >= 0 {
			to += int64(put)
		}
		if e2 != 0 || put < got {
			break
		}
	}
	if inOff != 0 {
		e = c.storeU64(inOff, uint64(from))
	} else {
		src.mu.Lock()
		src.pos = from
		src.mu.Unlock()
	}
	if outOff != 0 && e == 0 {
		e = c.storeU64(outOff, uint64(to))
	}
	return done, e
}

// maxCopy bounds one call that copies between files, so that the thread can be interrupted in between.
const maxCopy = 32 << 20

func (c *Call) startOffset(addr uint64) (int64, unix.Errno) {
	if addr == 0 {
		return -1, 0
	}
	v, e := c.loadU64(addr)
	if e != 0 {
		return 0, e
	}
	return position(v)
}
