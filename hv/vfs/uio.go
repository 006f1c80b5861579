package vfs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// vec is one range of guest memory.
type vec struct{ addr, n uint64 }

// uio is the memory side of one read or write call: guest ranges that are consumed from the front, or one
// host buffer when both ends are in the host.
type uio struct {
	c     *Call
	write bool // the call writes guest memory: it is a read call
	left  uint64
	vecs  []vec
	host  []byte
	local bool // the data is in host, not in vecs
	// cached makes transfer read only what the host has in memory; see Call.readCached.
	cached bool
	segs   [][]byte
	rel    []func()
}

// set1 makes u one guest range.
func (u *uio) set1(c *Call, addr, n uint64, write bool) {
	n = min(n, maxRW)
	c.vecs = append(c.vecs[:0], vec{addr, n})
	u.c, u.write, u.left, u.vecs, u.host, u.local = c, write, n, c.vecs, nil, false
}

// setHost makes u a host buffer.
func (u *uio) setHost(c *Call, b []byte, write bool) {
	u.c, u.write, u.left, u.vecs, u.host, u.local = c, write, uint64(len(b)), nil, b, true
}

// setIov makes u the guest's array of n struct iovec at addr.
func (u *uio) setIov(c *Call, addr, n uint64, write bool) unix.Errno {
	if n > maxIov {
		return unix.EINVAL
	}
	c.vecs = c.vecs[:0]
	var total uint64
	wire := c.bounceBuf()[:n*16]
	if e := c.copyIn(addr, wire); e != 0 {
		return e
	}
	for ; len(wire) > 0; wire = wire[16:] {
		v := vec{binary.LittleEndian.Uint64(wire), binary.LittleEndian.Uint64(wire[8:])}
		if v.n > 1<<63-1 {
			return unix.EINVAL
		}
		if v.n = min(v.n, maxRW-total); v.n == 0 {
			continue
		}
		total += v.n
		c.vecs = append(c.vecs, v)
	}
	u.c, u.write, u.left, u.vecs, u.host, u.local = c, write, total, c.vecs, nil, false
	return 0
}

func (u *uio) advance(n uint64) {
	u.left -= n
	if u.local {
		u.host = u.host[n:]
		return
	}
	for n > 0 {
		v := &u.vecs[0]
		k := min(n, v.n)
		v.addr, v.n, n = v.addr+k, v.n-k, n-k
		if v.n == 0 {
			u.vecs = u.vecs[1:]
		}
	}
}

// take lends host slices for up to limit of the next bytes, in at most maxIov pieces. ok is false when
// the engine cannot. The caller must call done, also after an error.
func (u *uio) take(limit uint64) (segs [][]byte, ok bool, errno unix.Errno) {
	u.segs = u.segs[:0]
	if u.local {
		u.segs = append(u.segs, u.host[:min(limit, u.left)])
		return u.segs, true, 0
	}
	for _, v := range u.vecs {
		if limit == 0 || len(u.segs) >= maxIov {
			break
		}
		n := min(v.n, limit)
		if v.addr+n < v.addr {
			return nil, true, unix.EFAULT
		}
		s, rel, ok, err := u.c.Mem.Segments(v.addr, n, u.write, u.segs)
		if rel != nil {
			u.rel = append(u.rel, rel)
		}
		if err != nil {
			if len(u.segs) > 0 {
				break // what precedes the bad range is served first
			}
			return nil, true, unix.EFAULT
		}
		if !ok {
			return nil, false, 0
		}
		u.segs = s
		limit -= n
	}
	if len(u.segs) > maxIov {
		u.segs = u.segs[:maxIov]
	}
	return u.segs, true, 0
}

// done gives back what take lent.
func (u *uio) done() {
	for i, f := range u.rel {
		f()
		u.rel[i] = nil
	}
	u.rel = u.rel[:0]
	clear(u.segs)
	u.segs = u.segs[:0]
}

// put copies b to the front of u, as much as fits, and advances. On EFAULT it returns what fitted before
// the bad range.
func (u *uio) put(b []byte) (uint64, unix.Errno) {
	b = b[:min(uint64(len(b)), u.left)]
	if u.local {
		copy(u.host, b)
		u.advance(uint64(len(b)))
		return uint64(len(b)), 0
	}
	var done uint64
	for len(b) > 0 {
		v := u.vecs[0]
		n := min(v.n, uint64(len(b)))
		if e := u.c.copyOut(v.addr, b[:n]); e != 0 {
			return done, e
		}
		u.advance(n)
		b, done = b[n:], done+n
	}
	return done, 0
}

// peek copies the front of u to b without advancing and returns how much that was. An EFAULT is returned
// only when nothing was copied.
func (u *uio) peek(b []byte) (uint64, unix.Errno) {
	b = b[:min(uint64(len(b)), u.left)]
	if u.local {
		return uint64(copy(b, u.host)), 0
	}
	var done uint64
	for _, v := range u.vecs {
		if len(b) == 0 {
			break
		}
		n := min(v.n, uint64(len(b)))
		if e := u.c.copyIn(v.addr, b[:n]); e != 0 {
			if done > 0 {
				return done, 0
			}
			return 0, e
		}
		b, done = b[n:], done+n
	}
	return done, 0
}

// get copies exactly len(b) bytes of u to b and advances.
func (u *uio) get(b []byte) unix.Errno {
	n, e := u.peek(b)
	if e == 0 && n < uint64(len(b)) {
		e = unix.EFAULT
	}
	if e == 0 {
		u.advance(n)
	}
	return e
}

// transfer moves up to limit bytes between u and the host descriptor fd with one system call: a read when
// u.write is set, otherwise a write; at offset off, or at the descriptor's own position when off < 0.
func (u *uio) transfer(fd int, off int64, limit uint64) (uint64, unix.Errno) {
	limit = min(limit, u.left)
	segs, ok, e := u.take(limit)
	if e != 0 {
		u.done()
		return 0, e
	}
	if ok {
		var n uint64
		if u.cached {
			n, e = u.c.readCached(fd, segs, off)
		} else {
			n, e = u.c.hostIO(fd, segs, off, u.write)
		}
		u.done()
		if e == 0 {
			u.advance(n)
		}
		return n, e
	}
	u.done()
	b := u.c.bounceBuf()
	b = b[:min(limit, uint64(len(b)))]
	if !u.write {
		n, e := u.peek(b)
		if e != 0 {
			return 0, e
		}
		u.segs = append(u.segs[:0], b[:n])
		n, e = u.c.hostIO(fd, u.segs, off, false)
		u.segs = u.segs[:0]
		if e == 0 {
			u.advance(n)
		}
		return n, e
	}
	u.segs = append(u.segs[:0], b)
	n, e := u.c.hostIO(fd, u.segs, off, true)
	u.segs = u.segs[:0]
	if e != 0 {
		return 0, e
	}
	put, e := u.put(b[:n])
	if put > 0 {
		e = 0
	}
	return put, e
}

// transferAll moves up to limit bytes at offset off of a regular file or a device, until the end of the
// file or an error. An error after some bytes is dropped: the next call meets it again.
func (u *uio) transferAll(fd int, off int64, limit uint64) (uint64, unix.Errno) {
	limit = min(limit, u.left)
	var done uint64
	for done < limit {
		n, e := u.transfer(fd, off+int64(done), limit-done)
		if e == unix.EINTR {
			continue
		}
		if e != 0 && done == 0 {
			return 0, e
		}
		if e != 0 || n == 0 {
			break
		}
		done += n
	}
	return done, 0
}
