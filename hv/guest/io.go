package guest

import (
	"errors"
	"io"

	"github.com/grailos/grail/ring/virtioblk"
)

// window is how many pieces of one large ReadAt or WriteAt are in flight at once.
const window = 4

// flight is one piece of a ReadAt or WriteAt.
type flight struct {
	q    *queue
	r    *request
	buf  uint64
	size uint64 // of buf
	skip int    // bytes of buf before the piece
	p    []byte // the piece
}

// ReadAt implements io.ReaderAt: any offset, any length. Errors: io.EOF at the end of the disk; ErrDevice.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("guest: read at a negative offset")
	}
	if off >= d.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > d.size-off {
		p, end = p[:d.size-off], io.EOF
	}
	n, err := d.transfer(virtioblk.TypeIn, p, off)
	if err == nil {
		err = end
	}
	return n, err
}

// WriteAt implements io.WriterAt. Offset and length must be multiples of BlockSize. What it wrote is durable
// after the next Flush. Errors: ErrReadOnly, ErrUnaligned, ErrBounds, ErrDevice; nothing was written in the
// first three cases.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(virtioblk.TypeOut, off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.transfer(virtioblk.TypeOut, p, off)
}

// transfer moves p in pieces through the pool, several at a time. It returns how many bytes from the start
// of p on were moved for certain. A caller that holds pieces never waits for the pool, or two of them could
// wait for each other.
func (d *Disk) transfer(kind uint32, p []byte, off int64) (int, error) {
	var ring [window]flight
	var head, flying, moved int
	var failed error
	for left := p; failed == nil && len(left) > 0 || flying > 0; {
		if failed == nil && len(left) > 0 && flying < window {
			f := &ring[(head+flying)%window]
			f.skip = int(off % d.block)
			n := min(len(left), int(d.max)-f.skip)
			bytes := (int64(f.skip+n) + d.block - 1) / d.block * d.block
			f.size, f.p = uint64(bytes), left[:n]
			ok := true
			if flying == 0 {
				f.buf = d.pool.alloc(f.size)
			} else {
				f.buf, ok = d.pool.tryAlloc(f.size)
			}
			if ok {
				if kind == virtioblk.TypeOut {
					copy(d.buffers[f.buf:], f.p)
				}
				f.q = d.pick()
				f.r, failed = f.q.start(kind, off-int64(f.skip), f.buf, uint32(bytes), nil)
				if failed != nil {
					d.pool.release(f.buf, f.size)
					continue
				}
				left, off = left[n:], off+int64(n)
				flying++
				continue
			}
		}
		f := &ring[head]
		err := f.q.await(f.r)
		if err == nil && failed == nil {
			if kind == virtioblk.TypeIn {
				copy(f.p, d.buffers[f.buf+uint64(f.skip):])
			}
			moved += len(f.p)
		} else if failed == nil {
			failed = err
		}
		d.pool.release(f.buf, f.size)
		head = (head + 1) % window
		flying--
	}
	return moved, failed
}
