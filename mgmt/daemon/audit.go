package daemon

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/grailos/grail/ring"
)

// How rings are audited while they are served.
const (
	// auditPause is the time between two looks.
	auditPause = 20 * time.Millisecond
	// auditRounds is how many heartbeats prove that a driver had the time to finish what it was at.
	auditRounds = 2
	// auditMoments is how many looks in a row a device that keeps the rules is not met between the same two steps.
	auditMoments = 8
	// auditIdle is how many looks pass between two at a queue whose indices stand still.
	auditIdle = 10
	// complaintLooks is for how many looks a complaint waits for proof, if there are signs of it.
	complaintLooks = 25
	// renewPause is the shortest time between two times that a client's rings are started anew while it is served.
	renewPause = 500 * time.Millisecond
	// blamePause is the shortest time, in the long run, between two blames of a driver for something that its client may have made up, and blameBurst
	// how many there may be at once: an honest client is believed a few times.
	blamePause = time.Minute
	blameBurst = 4
)

// auditor watches the rings of the clients of one instance.
type auditor struct {
	dr     *driver
	inst   *driverInstance
	queues map[uint64]*auditState // by attachment and index, as inFlight numbers them
}

// auditState is what the last look at a queue has found.
type auditState struct {
	avail, used uint16
	idle        int       // looks that found these indices
	rule        ring.Rule // a momentary rule that was seen broken
	log         uint16    // the log's index then
	beat        uint64    // when it was first seen
	moments     int       // looks in a row that found it broken, the log's index being another each time
	held        int       // looks for which a complaint has waited for proof
}

// watchRings declares the instance dead when it is found to break the rules of a ring.
func (dr *driver) watchRings(inst *driverInstance, quit <-chan struct{}) {
	a := &auditor{dr: dr, inst: inst, queues: map[uint64]*auditState{}}
	for range inst.looks(auditPause, quit, nil) {
		for _, c := range dr.servedBy(inst) {
			if a.look(c) {
				return
			}
		}
	}
}

// servedBy returns the clients that inst serves.
func (dr *driver) servedBy(inst *driverInstance) []*client {
	dr.mu.Lock()
	list := dr.clientList()
	dr.mu.Unlock()
	return slices.DeleteFunc(list, func(c *client) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.on != inst || c.dead || c.gone
	})
}

// look audits the rings of a client, and reports whether the instance is dead.
func (a *auditor) look(c *client) bool {
	for i := range c.att.Queues {
		f := a.find(c, i)
		switch {
		case f.Rule == ring.RuleNone:
		case c.native() && !f.Rule.Forgeable():
			a.inst.declareLiar(fmt.Sprintf("queue %d of client %s: %s", c.att.Queues[i].Index, c.att.Client, f.What))
			return true
		case !a.dr.confirm(a.inst, []*client{c}):
			return false // the driver has found out that it is the client
		default:
			return a.accuse(c, fmt.Sprintf("queue %d of client %s: %s", c.att.Queues[i].Index, c.att.Client, f.What))
		}
	}
	if what := c.complaint(); what != "" && !a.hold(c) {
		return a.accuse(c, fmt.Sprintf("client %s complains: %s", c.att.Client, what))
	}
	return false
}

// hold reports whether a complaint is to wait, because there may soon be proof.
func (a *auditor) hold(c *client) bool {
	for i := range c.att.Queues {
		if s := a.queues[c.att.ID<<queueBits|uint64(i)]; s != nil && s.rule != ring.RuleNone && s.held < complaintLooks {
			s.held++
			return true
		}
	}
	return false
}

// find audits one queue and returns what is proved.
func (a *auditor) find(c *client, i int) (none ring.Finding) {
	q := &c.att.Queues[i]
	key := c.att.ID<<queueBits | uint64(i)
	s := a.queues[key]
	if s == nil {
		s = &auditState{}
		a.queues[key] = s
	}
	avail, ok1 := c.read16(q.Avail + 2)
	used, ok2 := c.read16(q.Used + 2)
	if !ok1 || !ok2 {
		return none
	}
	if s.rule == ring.RuleNone && s.avail == avail && s.used == used {
		if s.idle++; s.idle%auditIdle != 0 {
			return none
		}
	} else if s.avail != avail || s.used != used {
		s.idle = 0
	}
	s.avail = avail
	e, ok := c.evidenceOf(i)
	if !ok {
		return none
	}
	s.used = e.UsedIdx()
	f := ring.Audit(e)
	if f.Rule != ring.RuleNone && !f.Rule.Momentary() {
		if e, ok = c.evidenceOf(i); ok && ring.Audit(e).Rule == f.Rule {
			return f
		}
		return none
	}
	switch {
	case f.Rule == ring.RuleNone:
		s.rule, s.held = f.Rule, 0
		return none
	case s.rule != f.Rule:
		s.rule, s.log, s.beat, s.moments = f.Rule, f.Log, a.inst.beat(), 0
	case s.log != f.Log:
		// The device went on meanwhile. To be looked at in just that instant again and again is no chance.
		if s.moments++; s.moments >= auditMoments {
			return f
		}
		s.log, s.beat = f.Log, a.inst.beat()
	case a.inst.beat()-s.beat >= auditRounds:
		return f
	}
	c.kick() // whoever has nothing to do does not beat until it is rung
	return none
}

// accuse does something about a driver of which a client says that it broke a rule, or a client that broke it itself: nobody can tell.
// The driver is replaced, but not again and again for the same client, who is served anew or, where that cannot be, no more. It reports whether the
// instance is dead.
func (a *auditor) accuse(c *client, what string) bool {
	c.mu.Lock()
	believed := c.believed(time.Now())
	renewed := c.renewed
	c.mu.Unlock()
	switch {
	case believed:
		a.inst.declareLiar(what)
		return true
	case c.native() && time.Since(renewed) < renewPause:
	case c.native():
		c.mu.Lock()
		c.renewed = time.Now()
		c.mu.Unlock()
		a.dr.d.log.Warn("ring started anew", "driver", a.dr.name(), "client", c.att.Client, "disk", c.att.Disk, "why", what)
		a.dr.renew(a.inst, c)
	default:
		a.dr.d.log.Warn("client marked dead", "driver", a.dr.name(), "client", c.att.Client, "disk", c.att.Disk, "why", what)
		c.mu.Lock()
		c.dead = true
		c.mu.Unlock()
		if c.refuse != nil {
			a.dr.d.background.Go(func() { c.refuse(errors.New("a ring of the client was found broken again: " + what)) })
		}
	}
	return false
}

// believed takes one of the client's blames, and reports whether there was one. The caller holds c.mu.
func (c *client) believed(now time.Time) bool {
	if first := now.Add(-(blameBurst - 1) * blamePause); c.blame.Before(first) {
		c.blame = first
	}
	if c.blame.After(now) {
		return false
	}
	c.blame = c.blame.Add(blamePause)
	return true
}

// declareLiar makes the driver's loop replace the instance, because it broke a rule.
func (i *driverInstance) declareLiar(what string) {
	i.lied.CompareAndSwap(nil, &what)
	i.declareHung(time.Now())
}
