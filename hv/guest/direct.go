package guest

import (
	"fmt"

	"github.com/grailos/grail/ring/virtioblk"
)

// Op is what Submit asks for.
type Op uint32

// The operations of Submit.
const (
	Read  Op = Op(virtioblk.TypeIn)
	Write Op = Op(virtioblk.TypeOut)
	Sync  Op = Op(virtioblk.TypeFlush) // as Flush; takes no buffer
)

// Buffer is memory that the driver's device reads and writes itself, without a copy. It belongs to one disk.
type Buffer struct {
	d    *Disk
	off  uint64
	size uint64
	b    []byte
}

// Alloc returns n bytes of the disk's pool, and waits while there are none. n is from 1 to MaxBuffer. The
// content is undefined. A caller that holds buffers and waits for more can wait for itself.
func (d *Disk) Alloc(n int) (*Buffer, error) {
	if n < 1 || n > d.MaxBuffer() {
		return nil, fmt.Errorf("guest: buffer of %d bytes, the limit is %d", n, d.MaxBuffer())
	}
	off := d.pool.alloc(uint64(n))
	return &Buffer{d: d, off: off, size: uint64(n), b: d.buffers[off:][:n:n]}, nil
}

// MaxBuffer returns the largest buffer and the largest request, in bytes.
func (d *Disk) MaxBuffer() int { return int(d.max) }

// Bytes returns the buffer's memory. While a request on it is outstanding it belongs to the driver.
func (b *Buffer) Bytes() []byte { return b.b }

// Free gives the buffer back. Preconditions: no request on it is outstanding; it is not used again.
func (b *Buffer) Free() {
	if b.b != nil {
		b.b = nil
		b.d.pool.release(b.off, b.size)
	}
}

// Ticket stands for a submitted request until it is waited for.
type Ticket struct {
	r   *request
	gen uint32
}

// Submit starts a request on the first n bytes of b, for the disk's bytes from off on, and returns without
// waiting for it: each Ticket must be given to Wait once. While Depth requests are outstanding it blocks
// until another goroutine waits for one of them. Sync ignores off, b and n. Errors: ErrReadOnly,
// ErrUnaligned and ErrBounds, for reads too.
func (d *Disk) Submit(op Op, off int64, b *Buffer, n int) (Ticket, error) {
	var data uint64
	if op == Sync {
		off, n = 0, 0
	} else {
		if op != Read && op != Write {
			return Ticket{}, fmt.Errorf("guest: unknown operation %d", op)
		}
		if b == nil || b.d != d || n < 1 || n > len(b.b) {
			return Ticket{}, fmt.Errorf("guest: %s of %d bytes needs a buffer of that size from this disk", kindName(uint32(op)), n)
		}
		if err := d.check(uint32(op), off, int64(n)); err != nil {
			return Ticket{}, err
		}
		data = b.off
	}
	r, err := d.pick().start(uint32(op), off, data, uint32(n), nil)
	if err != nil {
		return Ticket{}, err
	}
	return Ticket{r: r, gen: r.gen}, nil
}

// Wait blocks until t's request is done, and returns its outcome. Errors: ErrDevice, errors.ErrUnsupported,
// ErrTicket.
func (d *Disk) Wait(t Ticket) error {
	if t.r == nil {
		return ErrTicket
	}
	q := t.r.q
	q.mu.Lock()
	stale := !t.r.used || t.r.gen != t.gen
	q.mu.Unlock()
	if stale {
		return ErrTicket
	}
	return q.await(t.r)
}
