package daemon

import (
	"slices"
	"time"

	"github.com/grailos/grail/mgmt/reincarnation"
	"github.com/grailos/grail/ring"
)

// watchProgress declares the instance stalled when requests that it has taken stand still although it beats. It is told by the
// in-flight logs, which no client can write to; a driver that keeps none is not watched.
func (dr *driver) watchProgress(inst *driverInstance, quit <-chan struct{}) {
	for again := true; again; {
		c, tuned := dr.tuning()
		again = dr.watchProgressBy(inst, fromMs(c.DeadlineMs), quit, tuned)
	}
}

// watchProgressBy is watchProgress for one deadline. It reports whether it ended because the policy has changed.
func (dr *driver) watchProgressBy(inst *driverInstance, patience time.Duration, quit, tuned <-chan struct{}) bool {
	p := reincarnation.Progress{Patience: patience}
	for range inst.looks(p.Interval(), quit, tuned) {
		work := reincarnation.Work{Beat: inst.beat(), Busy: inst.hostBusy(), Oldest: map[uint64]uint64{}}
		waiting := dr.pendingClients(inst)
		for _, c := range waiting {
			c.inFlight(work.Oldest)
		}
		queue, stands := p.Observe(work)
		if !stands {
			continue
		}
		blamed := slices.DeleteFunc(waiting, func(c *client) bool { return c.att.ID != queue>>queueBits })
		if dr.confirm(inst, blamed) {
			inst.stalled.Store(true)
			inst.declareHung(time.Now().Add(-p.Patience))
			return false
		}
	}
	return closed(tuned)
}

// queueBits is how many bits of a queue's number in the whole driver name it within its attachment.
const queueBits = 16

// inFlight notes the oldest request in flight of each queue.
func (c *client) inFlight(oldest map[uint64]uint64) {
	for i := range c.att.Queues {
		log := c.log(i)
		if log == nil {
			return
		}
		if number, ok := ring.OldestInflight(log, c.att.Queues[i].Size); ok {
			oldest[c.att.ID<<queueBits|uint64(i)] = number
		}
	}
}
