package serve

import (
	"math"
	"time"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring/virtioblk"
)

// What a round may hold. To perform one costs an exit from the VM where the host has to be asked, which is to be a small part of the whole; but nobody's
// requests that come meanwhile are to wait long.
const (
	// What one queue may put into a client's turn before the next one: requests, and cost after which there is no further one.
	queueTurn     = 64
	queueTurnCost = 2 << 20

	// Cost of a round, in bytes: of the only client; of one whom the others leave alone just now; of those in company for whom the host is
	// asked; and of those for whom it is not.
	onlyRound = 8 << 20
	soloRound = 2 << 20
	farRound  = 256 << 10
	nearRound = 24 << 10

	// Largest part of a divided request for which the host is not asked; the same while one of the clients has a few requests now and then, which
	// are not to wait.
	nearPart  = 16 << 10
	shortPart = 8 << 10
)

// What a request costs beyond its bytes, and what a client of the default weight takes in a round of the scheduler, in bytes: a request of 4 KiB takes
// some 1.6 µs, of which the copying is 0.7.
const (
	opCost      = 6 << 10
	quantumCost = 16 << 10
)

// Costs is what shares are reckoned in.
var Costs = share.Costs{PerOp: opCost, Quantum: quantumCost}

const (
	// companyFor is how long after two clients were served in turn they are taken to be in each other's way, in ns.
	companyFor = int64(10 * time.Millisecond)
	// heldWait bounds a sleep while a cap holds somebody back: less than the least heartbeat.
	heldWait = 5 * time.Millisecond
	// overdue is how long a divided request may take, in ns. Who supervises the driver by its logs would think that it has forgotten it.
	overdue = int64(50 * time.Millisecond)
)

// batch counts what a round has taken.
type batch struct {
	segs int
	cost int64
}

// take fetches requests and plans their operations: those of the client whose turn it is, and of others as long as they do not wait for it.
func (s *Server) take() {
	s.ops, s.batch = s.ops[:0], s.batch[:0]
	var b batch
	for _, q := range s.queues {
		if !q.c.share.Working() && q.Pending() {
			s.sched.Ready(q.c.share, s.now)
		}
		if q.part.parted && s.now-q.part.since > overdue {
			if cost, ops, bytes, ok := s.resume(q, farRound, &b); ok {
				s.sched.Charge(q.c.share, cost, ops, bytes, s.now)
			}
		}
	}
	for {
		sc, g := s.sched.Next(s.now)
		if sc == nil {
			return
		}
		c := sc.Owner.(*client)
		if c != s.last {
			if len(s.batch) > 0 && !(c.far && s.last.far) {
				return // the one is not to wait for the other
			}
			s.last, s.company = c, s.now+companyFor
		}
		if room := s.room(c) - b.cost; room <= 0 || !s.turn(c, g, room, &b) {
			return
		}
	}
}

// room returns what a round with work of c may cost.
func (s *Server) room(c *client) int64 {
	switch {
	case len(s.clients) == 1:
		return onlyRound
	case s.now >= s.company:
		return soloRound
	case c.far:
		return farRound
	}
	return nearRound
}

// turn takes what c may have done now, each of its queues in turn. It reports whether there is room for more.
func (s *Server) turn(c *client, g share.Grant, room int64, b *batch) (more bool) {
	first, empty, full := len(s.batch), 0, false
	var cost, ops, bytes int64 // in all
	left := func() bool { return cost < room && cost < g.Cost && ops < g.Ops && bytes < g.Bytes }
	for left() && empty < len(c.queues) && !full && !c.dead {
		if c.next++; c.next >= len(c.queues) {
			c.next = 0
		}
		q, before, end := c.queues[c.next], len(s.batch), cost+queueTurnCost
		for k := 0; k < queueTurn && cost < end && left(); k++ {
			dc, do, db, ok := s.one(q, room-cost, b)
			if !ok {
				full = s.full(b)
				break
			}
			cost, ops, bytes = cost+dc, ops+do, bytes+db
		}
		if empty++; len(s.batch) > before {
			empty = 0
		}
	}
	s.sched.Charge(c.share, cost, ops, bytes, s.now)
	if empty == len(c.queues) && !c.dead && !c.unfinished() {
		s.sched.Idle(c.share)
		if s.now < s.company {
			s.sparse = s.now + companyFor
		}
		return true
	}
	return len(s.batch) > first && !full
}

// part returns the largest part of a divided request for which the host is not asked.
func (s *Server) part() int64 {
	if s.now < s.sparse {
		return shortPart
	}
	return nearPart
}

// unfinished reports whether c has a divided request.
func (c *client) unfinished() bool {
	for _, q := range c.queues {
		if q.part.parted {
			return true
		}
	}
	return false
}

// full reports whether the batch has no room for any request.
func (s *Server) full(b *batch) bool {
	return len(s.batch) == cap(s.batch) || len(s.ops)+MaxRanges > cap(s.ops) || b.segs+abi.MaxDevSegs > MaxSegments
}

// one takes one request of q, or the next part of one, and says what is to be charged for it. False: there is none now.
func (s *Server) one(q *queue, room int64, b *batch) (cost, ops, bytes int64, ok bool) {
	if q.part.parted {
		if q.inRound {
			return 0, 0, 0, false
		}
		return s.resume(q, room, b)
	}
	if s.full(b) {
		return 0, 0, 0, false
	}
	w := s.works[len(s.batch)]
	ok, err := q.dev.Pop(&w.chain)
	if err == nil && ok {
		err = w.req.Parse(&w.chain)
	}
	if err != nil {
		s.kill(q.c, err)
		return 0, 0, 0, false
	}
	if !ok {
		return 0, 0, 0, false
	}
	w.q = q
	s.ops = w.plan(&q.c.limits, s.ops)
	cost, ops, bytes = opCost, 1, 0
	if w.req.Type == virtioblk.TypeIn || w.req.Type == virtioblk.TypeOut {
		if w.count == 1 && int64(w.req.DataBytes) > max(room, s.part()) {
			s.ops = w.divide(s.ops, s.now)
			s.works[len(s.batch)], q.part = q.part, w
			cost, ops, bytes, ok = s.resume(q, room, b)
			return cost + opCost, ops, bytes, ok
		}
		bytes = int64(w.req.DataBytes)
		cost += bytes
	}
	s.add(w, cost, b)
	return cost, ops, bytes, true
}

// resume takes the next part of q's divided request. What counts against caps is counted with the last part.
func (s *Server) resume(q *queue, room int64, b *batch) (cost, ops, bytes int64, ok bool) {
	if q.inRound || s.full(b) {
		return 0, 0, 0, false
	}
	w := q.part
	most := uint64(s.part())
	if q.c.far || s.now >= s.company || len(s.clients) == 1 {
		most = uint64(max(room, nearPart)) &^ (nearPart - 1)
	}
	var n uint64
	s.ops, n = w.next(s.ops, most)
	q.inRound = true
	s.add(w, int64(n), b)
	if w.done == w.whole.Length {
		return int64(n), 1, int64(w.whole.Length), true
	}
	return int64(n), 0, 0, true
}

// add puts w into the batch.
func (s *Server) add(w *work, cost int64, b *batch) {
	if s.now < s.company {
		for i := range w.count {
			s.ops[w.first+i].Shared = true
		}
	}
	s.batch = append(s.batch, w)
	b.segs += len(w.req.Data)
	b.cost += cost
	s.meter.Note(&w.q.use.Account, cost)
}

// finishParts performs and completes what c has in parts.
func (s *Server) finishParts(c *client) {
	for _, q := range c.queues {
		for q.part.parted && !c.dead {
			s.ops, s.batch = s.ops[:0], s.batch[:0]
			s.resume(q, math.MaxInt32, &batch{})
			s.dev.Do(s.ops)
			s.performed(q.part)
		}
	}
}
