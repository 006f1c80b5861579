package logring

import (
	"sync/atomic"
	"time"
)

// Consumer reads the stream. It is a ring.Source. It is not safe for concurrent use.
type Consumer struct {
	mem, data          []byte
	pos                uint64
	seen               uint16 // the producer's count of writes before its head was looked at
	next               uint64 // time marks looked at
	now                int64  // of the last time mark that was reached
	avail, used, sleep *atomic.Uint32
	claim, head, mark  *atomic.Uint64
}

// NewConsumer returns a consumer of the ring in mem that goes on at position pos of the stream. Errors: ErrMemory.
func NewConsumer(mem []byte, pos uint64) (*Consumer, error) {
	if err := check(mem); err != nil {
		return nil, err
	}
	return &Consumer{mem: mem, data: mem[headerBytes:], pos: pos, avail: word32(mem, AvailOffset), used: word32(mem, UsedOffset),
		sleep: word32(mem, sleepOffset), claim: word64(mem, claimOffset), head: word64(mem, headOffset), mark: word64(mem, marksOffset)}, nil
}

// Position returns where in the stream the next Take begins.
func (c *Consumer) Position() uint64 { return c.pos }

// Size returns how many bytes the ring holds.
func (c *Consumer) Size() int { return len(c.data) }

// Take copies what comes next to buf, and returns how much that is, how many bytes before it were lost, and when it was written, 0 if
// that is not known. n is 0 when there is nothing new. What it returns may be anything: the producer is not trusted, and time is its word. Errors: ErrPeerPosition.
func (c *Consumer) Take(buf []byte) (n int, lost uint64, at int64, err error) {
	size := uint64(len(c.data))
	c.seen = uint16(c.avail.Load() >> 16)
	head := c.head.Load()
	if head < c.pos {
		return 0, 0, 0, ErrPeerPosition
	}
	if head-c.pos > size {
		lost = head - c.pos - size
		c.pos += lost
	}
	if head == c.pos {
		return 0, lost, 0, nil
	}
	want := min(head-c.pos, uint64(len(buf)))
	at, want = c.timed(want)
	from := int(c.pos % size)
	n = copy(buf[:want], c.data[from:])
	n += copy(buf[n:want], c.data)
	// What the producer began to overwrite meanwhile is not what it was; pairs with the store of claim in Producer.Put.
	if claim := c.claim.Load(); claim > c.pos+size {
		gone := min(claim-size-c.pos, uint64(n))
		copy(buf, buf[gone:n])
		n -= int(gone)
		lost += gone
		c.pos += gone
	}
	c.pos += uint64(n)
	return n, lost, at, nil
}

// timed returns when the byte at pos was written, and how many bytes of want were written then.
func (c *Consumer) timed(want uint64) (at int64, n uint64) {
	made := c.mark.Load()
	if made < c.next {
		c.next = made // a producer that is broken: its times mean nothing
	}
	if oldest := made - min(made, marks); c.next < oldest {
		// The marks of what comes first are gone: it is older than the first one that is left.
		c.next = oldest
		c.now = int64(word64(c.mem, tableOffset+int(oldest%marks)*16+8).Load())
	}
	for ; c.next < made; c.next++ {
		slot := tableOffset + int(c.next%marks)*16
		if p := word64(c.mem, slot).Load(); p > c.pos {
			return c.now, min(want, p-c.pos)
		}
		c.now = int64(word64(c.mem, slot+8).Load())
	}
	return c.now, want
}

// Done says that what was taken is dealt with, if that was all there is.
func (c *Consumer) Done() {
	if c.head.Load() == c.pos {
		c.used.Store(uint32(c.seen) << 16)
	}
}

// Pending implements ring.Source.
func (c *Consumer) Pending() bool { return c.head.Load() != c.pos }

// Arm implements ring.Source.
func (c *Consumer) Arm() (maySleep bool) {
	// Before the look at head; pairs with Producer.Put.
	c.sleep.Store(1)
	return !c.Pending()
}

// Disarm implements ring.Source.
func (c *Consumer) Disarm() { c.sleep.Store(0) }

// Time returns a time of Take's; the zero Time if that is not known.
func Time(at int64) time.Time {
	if at <= 0 {
		return time.Time{}
	}
	return time.Unix(0, at)
}
