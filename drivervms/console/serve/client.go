package serve

import (
	"time"

	"github.com/grailos/grail/drivervms/console/logfile"
	"github.com/grailos/grail/ring/logring"
)

// gapEvery is how long a gap that grows is waited for before it is written down.
const gapEvery = time.Second

// client is one VM's console.
type client struct {
	id    uint64
	ring  *logring.Consumer
	log   *logfile.Writer
	limit logring.Limiter
	mem   [][]byte // what can fault

	lost, dropped uint64    // not yet written down
	since         time.Time // when the first of it was noticed
}

// step takes one piece from the ring and logs it. It returns how much left the ring, 0 when it is empty. taken is called when the piece is in hand.
func (c *client) step(buf []byte, now time.Time, taken func()) (n int, err error) {
	n, lost, at, err := c.ring.Take(buf)
	if err != nil {
		return 0, err
	}
	taken()
	if n == 0 && lost == 0 {
		c.ring.Done()
		return 0, nil
	}
	written := logring.Time(at)
	if written.IsZero() || written.After(now) {
		written = now
	}
	ok := int(c.limit.Admit(int64(n), now))
	if c.lost+c.dropped == 0 {
		c.since = now
	}
	c.lost += lost
	if ok > 0 {
		// What was dropped before it comes first. The rest of this piece is for later.
		c.gap(written, c.ring.Position()-uint64(n))
		c.log.Write(buf[:ok], written, c.ring.Position()-uint64(n-ok))
		c.since = now
	}
	c.dropped += uint64(n - ok)
	if c.lost+c.dropped > 0 && now.Sub(c.since) >= gapEvery {
		c.gap(now, c.ring.Position())
	}
	c.ring.Done()
	return n + int(min(lost, uint64(c.ring.Size()))), nil
}

// gap writes down what is missing before a position.
func (c *client) gap(at time.Time, pos uint64) {
	if c.lost > 0 {
		c.log.Gap(logfile.Lost, c.lost, at, pos)
	}
	if c.dropped > 0 {
		c.log.Gap(logfile.Limited, c.dropped, at, pos)
	}
	c.lost, c.dropped, c.since = 0, 0, at
}

// owes reports whether a gap is to be written down later.
func (c *client) owes() bool { return c.lost+c.dropped > 0 }
