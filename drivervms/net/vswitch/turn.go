package vswitch

import (
	"math"
	"time"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/ring"
)

// What a round may hold. It is published at its end, so it is short.
const (
	queueTurn      = 64        // frames that one queue may put into one round
	queueTurnBytes = 512 << 10 // bytes, after which no further frame is taken

	// Cost of a round in which several clients are in each other's way, in bytes: of frames between ports, which take some 8 µs; the same while one
	// of the clients sends a few frames now and then, which are not to wait; and of frames for the uplink, which cost an exit.
	nearRound  = 192 << 10
	shortRound = 32 << 10
	farRound   = 512 << 10
)

// What a frame costs beyond its bytes, and what a client of the default weight takes in a round of the scheduler, in bytes: a frame of 64 bytes takes some
// 230 ns, and 1,500 bytes 50 more.
const (
	opCost      = 6 << 10
	quantumCost = 16 << 10
	nsPerKiB    = 38 // of cost, about; for what was interrupted by a sleep
)

// Costs is what shares are reckoned in.
var Costs = share.Costs{PerOp: opCost, Quantum: quantumCost}

const (
	// companyFor is how long after two clients were served in turn they are taken to be in each other's way, in ns.
	companyFor = int64(2 * time.Millisecond)
	// heldWait bounds a sleep while a cap holds somebody back: less than the least heartbeat.
	heldWait = 5 * time.Millisecond
	// settleEvery is how often processor time is charged, in ns, while there is work. It costs a call of the host's.
	settleEvery = int64(250 * time.Millisecond)
)

// account charges the time since the last round began for that round.
func (s *Switch) account() {
	was := s.now
	s.now = s.clock()
	spent := s.now - was
	if sleeps := s.poller.Sleeps(); sleeps != s.sleeps {
		s.sleeps = sleeps
		spent = min(spent, s.meter.Noted()*nsPerKiB>>10)
	}
	if s.meter.Round(spent) && s.now-s.settled > settleEvery {
		s.settleCPU()
	}
}

// settleCPU charges the processor time used until now.
func (s *Switch) settleCPU() {
	s.settled = s.now
	if s.CPU != nil {
		s.meter.Settle(s.CPU())
	}
}

// Uses returns what each ring of the attachment had done, and charges what was used until now before.
func (s *Switch) Uses(id uint64) (list []share.Use) {
	s.settleCPU()
	if p := s.ports[id]; p != nil {
		for i := range p.rx {
			list = append(list, p.rx[i].use, p.tx[i].use)
		}
	}
	return list
}

// Own returns the processor time that is charged to nobody.
func (s *Switch) Own() time.Duration {
	s.settleCPU()
	return s.meter.Own
}

// SetShare changes what an attachment gets beside the others. Errors: ErrUnknown; what share.Config.Check says.
func (s *Switch) SetShare(id uint64, cfg share.Config) error {
	p := s.ports[id]
	if p == nil {
		return ErrUnknown
	}
	if p.dead {
		return cfg.Check()
	}
	return s.sched.Set(p.share, cfg, s.now)
}

// round takes what the clients and the uplink offer, as much as a round may hold, and returns the number of frames.
func (s *Switch) round() (n int) {
	for _, q := range s.tx {
		if q.on != nil && !q.p.dead {
			q.retry()
		}
		if p := q.p; q.on == nil && !p.dead && !p.share.Working() && q.dev.Pending() {
			s.sched.Ready(p.share, s.now)
		}
	}
	if s.up != nil && s.up.due() {
		s.sched.Ready(s.up.share, s.now)
	}
	cost := int64(0)
	for {
		c, g := s.sched.Next(s.now)
		if c == nil {
			return n
		}
		if c != s.last {
			s.last, s.company = c, s.now+companyFor
		}
		room := s.room() - cost
		if room <= 0 {
			return n
		}
		if c.Owner == nil {
			n += s.fromUplink()
			continue
		}
		k, spent, more := s.turn(c.Owner.(*port), g, room)
		n += k
		if cost += spent; !more {
			return n
		}
		if !c.Working() && s.now < s.company {
			s.sparse = s.now + companyFor
			// Who has few frames is not to wait for the others'. What goes to the uplink costs an exit, and is gathered.
			if s.up == nil || s.up.n == 0 {
				s.show()
			}
		}
	}
}

// room returns what a round may cost.
func (s *Switch) room() int64 {
	switch {
	case s.now >= s.company:
		return math.MaxInt64
	case s.up != nil && s.up.n > 0:
		return farRound
	case s.now < s.sparse:
		return shortRound
	}
	return nearRound
}

// fromUplink takes frames from the uplink, once a round.
func (s *Switch) fromUplink() int {
	bytes := s.up.count.TxBytes
	s.inbound = true
	n := s.up.receive()
	s.inbound = false
	took := int64(s.up.count.TxBytes - bytes)
	s.sched.Charge(s.up.share, int64(n)*opCost+took, int64(n), took, s.now)
	s.sched.Idle(s.up.share)
	return n
}

// turn takes what p may send now, each of its queues in turn. It reports whether there is room for others in the round.
func (s *Switch) turn(p *port, g share.Grant, room int64) (frames int, cost int64, more bool) {
	left := quota{ops: g.Ops, bytes: g.Bytes, cost: min(g.Cost, room)}
	begin := left
	idle := true
	for range p.tx {
		if p.next++; p.next >= len(p.tx) {
			p.next = 0
		}
		q := p.tx[p.next]
		if q.on != nil {
			continue // it waits for a receiver
		}
		before := left
		empty := s.drain(q, &left)
		if n := before.ops - left.ops; n > 0 {
			frames += int(n)
			q.use.Ops += uint64(n)
			q.use.Bytes += uint64(before.bytes - left.bytes)
			s.meter.Note(&q.use.Account, before.cost-left.cost)
		}
		idle = idle && empty
	}
	cost = begin.cost - left.cost
	s.sched.Charge(p.share, cost, begin.ops-left.ops, begin.bytes-left.bytes, s.now)
	if idle && !p.dead {
		s.sched.Idle(p.share)
		return frames, cost, true
	}
	// Those that are alone are published after each turn.
	return frames, cost, frames > 0 && !g.Alone
}

// quota is what may still be taken.
type quota struct{ ops, bytes, cost int64 }

// drain takes frames of q and forwards them, as many as one queue may put into a round and left allows. It reports whether nothing can be taken
// any more until the client or a receiver has done something.
func (s *Switch) drain(q *txQueue, left *quota) (empty bool) {
	p, f := q.p, &q.frame
	n, bytes := 0, int64(0)
	for n < queueTurn && bytes < queueTurnBytes && len(q.done) < cap(q.done) && left.ops > 0 && left.bytes > 0 && left.cost > 0 && !p.dead {
		ok, err := q.dev.Pop(&q.chain)
		if err == nil && ok && len(q.chain.Writable) > 0 {
			err = ring.ErrPeerChain
		}
		if err != nil {
			s.kill(p, err)
			return true
		}
		if !ok {
			return true
		}
		n++
		s.step(StepTaken)
		r := f.load(&q.chain, p.features, int(p.cfg.MTU))
		size := int64(max(f.n, 0))
		p.count.TxPackets++
		p.count.TxBytes += uint64(size)
		bytes += size
		left.ops--
		left.bytes -= size
		left.cost -= opCost + size
		if r == Delivered && s.refuse {
			r = DropDown
		}
		if r == Delivered {
			if r = s.forward(q, f); q.on != nil {
				return true // it waits
			}
		}
		s.settle(p, nil, r)
		if p.dead {
			return true
		}
		q.finish()
	}
	return false
}
