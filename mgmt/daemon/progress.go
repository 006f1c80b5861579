package daemon

import (
	"slices"
	"time"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/reincarnation"
	"github.com/grailos/grail/ring"
)

// watchProgress declares the instance stalled when requests stand still although it beats. Of those that it has taken it is told by the in-flight logs, which
// no client can write to. Of those that it has not, and where there is no log, as for networks and consoles, the used index of a ring with work in it has to
// stand still, which a client could forge, and the driver has to be silent when it is asked something: one that answers has been through its rounds.
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
			c.positions(work.Oldest)
			if c.att.Log >= 0 {
				c.inFlight(work.Oldest)
			}
		}
		queue, stands := p.Observe(work)
		if !stands {
			continue
		}
		blamed := slices.DeleteFunc(waiting, func(c *client) bool { return c.att.ID != queue>>queueBits })
		what := "requests that it had taken stood still"
		if work.Oldest[queue]&untaken != 0 {
			if len(blamed) > 0 && !inst.silent(blamed[0].att.ID) {
				p.Forget(queue)
				continue
			}
			what = "work in a ring stood still, and no question was answered,"
		}
		if dr.confirm(inst, blamed) {
			inst.declareStalled(what, time.Now().Add(-p.Patience))
			return false
		}
	}
	return closed(tuned)
}

// queueBits is how many bits of a queue's number in the whole driver name it within its attachment.
const queueBits = 16

// untaken marks a position in a ring among the numbers of requests in flight.
const untaken = 1 << 63

// silent reports whether the driver's program does not answer a question about an attachment.
func (i *driverInstance) silent(id uint64) bool {
	_, err := i.ask(abi.Message{Type: abi.MsgStats, ID: id})
	return err != nil && !i.gone()
}

// positions notes how far the driver has come in each queue in which there is work for it.
func (c *client) positions(oldest map[uint64]uint64) {
	for i := range c.att.Queues {
		if avail, used, ok := c.indices(i); ok && avail != used {
			oldest[c.att.ID<<queueBits|uint64(i)] = uint64(used) | untaken
		}
	}
}

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
