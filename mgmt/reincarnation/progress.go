package reincarnation

import "time"

// DefaultPatience is how long a driver may keep a request that it has taken, without asking the host for anything.
const DefaultPatience = 2 * time.Second

// Bounds of a patience: the shortest is longer than a pause of the host's, within which nothing is looked at.
const (
	MinPatience = 100 * time.Millisecond
	MaxPatience = time.Hour
)

// looksPerPatience is how often the requests in flight are looked at in that time.
const looksPerPatience = 8

// Work is one look at what a driver does about its requests. Of those that it has taken it comes from memory that only the host and the driver write, so no
// client can blame its driver for a request that it forged. Of those that wait it comes from the ring, and who observes that they stand still has to ask the
// driver before it is blamed.
type Work struct {
	Beat   uint64            // abi.StatusBeat
	Busy   bool              // the host is performing device calls for it
	Oldest map[uint64]uint64 // by queue: the number of the oldest request in flight, in the driver's order of taking; or, marked as such, how far the driver has come
}

// Progress finds out a driver that beats, and leaves requests lying. The zero value with a Patience is ready for use.
//
// Looks do not count while the heartbeat stands still, which is Heartbeat's to judge and tells nothing about a busy host, nor while the
// host performs a call: a flush may take as long as the disk likes. A driver that is well finishes what it has taken before it beats again.
type Progress struct {
	Patience time.Duration

	beat  uint64
	queue map[uint64]standing
}

// standing is how often one request was seen as its queue's oldest.
type standing struct {
	number uint64
	looks  int
}

// Interval returns how long to wait between two looks.
func (p *Progress) Interval() time.Duration { return p.Patience / looksPerPatience }

// Forget begins anew with a queue: there is a reason why it stands still.
func (p *Progress) Forget(queue uint64) { delete(p.queue, queue) }

// Observe takes a look and returns a queue whose oldest request stands still, or false.
func (p *Progress) Observe(w Work) (queue uint64, stands bool) {
	if w.Busy {
		p.queue = nil
		return 0, false
	}
	if w.Beat == p.beat {
		return 0, false
	}
	p.beat = w.Beat
	now := make(map[uint64]standing, len(w.Oldest))
	for q, number := range w.Oldest {
		s, ok := p.queue[q]
		if !ok || s.number != number {
			s = standing{number: number}
		}
		s.looks++
		now[q] = s
		if s.looks > looksPerPatience {
			queue, stands = q, true
		}
	}
	p.queue = now
	return queue, stands
}
