package share

import "math"

// Costs says what an operation costs, in bytes: on top of those that it moves.
type Costs struct {
	PerOp int64
	// Quantum is what a client of the default weight may take in a round, in bytes of cost: the most by which two clients that always have work are
	// apart from what their weights say, but for the size of what is served at once.
	Quantum int64
}

// Of returns the cost of operations that move so many bytes.
func (c Costs) Of(ops, bytes int64) int64 { return ops*c.PerOp + bytes }

// Scheduler says whose work comes next. It belongs to one goroutine.
type Scheduler struct {
	costs     Costs
	root      node
	groups    map[string]*node
	throttled heap // by when the cap lets them go on
	due       heap // have work and a guarantee that has run out, by when it lets them go first again
	reserved  node // head and tail of the list of those that have work and something left of a guarantee: rnext, rprev
	clients   int
	busy      int // clients that have work and are not held back by a cap of their own
}

// Client is a client of a Scheduler.
type Client struct {
	Owner any // the caller's

	n    node
	work bool
}

// Grant is how much of a client's work to do at once: any of the numbers may be overdrawn by one operation, or a part of one.
type Grant struct {
	Cost, Ops, Bytes int64
	Alone            bool // nobody else has work: Cost is no bound
}

// New returns a scheduler without clients.
func New(c Costs) *Scheduler {
	s := &Scheduler{costs: Costs{PerOp: max(c.PerOp, 0), Quantum: max(c.Quantum, 1)}, groups: map[string]*node{}}
	s.throttled.kind, s.due.kind = capHeap, guaranteeHeap
	s.reserved.rnext, s.reserved.rprev = &s.reserved, &s.reserved
	return s
}

// Costs returns what the scheduler reckons with.
func (s *Scheduler) Costs() Costs { return s.costs }

// Add makes a client that has no work. Errors: Config.Check's.
func (s *Scheduler) Add(owner any, cfg Config) (*Client, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	c := &Client{Owner: owner}
	c.n.client = c
	c.n.deficit = math.MaxInt64
	s.place(c, cfg)
	s.clients++
	return c, nil
}

// place puts c, which is in no group, where cfg says.
func (s *Scheduler) place(c *Client, cfg Config) {
	p := &s.root
	for _, g := range cfg.Groups {
		n := s.groups[g.Name]
		if n == nil {
			n = &node{parent: p, name: g.Name, round: p.turn}
			n.set(g.Limits, s.costs.Quantum)
			n.deficit = n.quantum
			s.groups[g.Name] = n
			p.uses++
		} else if n.limits != g.Limits {
			s.change(n, g.Limits)
		}
		p = n
	}
	c.n.parent, c.n.round = p, p.turn
	c.n.set(cfg.Limits, s.costs.Quantum)
	p.uses++
}

// change gives a node other limits. What depends on the old ones is settled when its turn comes.
func (s *Scheduler) change(n *node, l Limits) {
	n.set(l, s.costs.Quantum)
	if n.throttled {
		s.throttled.put(n, 0) // look again
	}
	s.unreserve(n)
	if n.in != nil {
		s.due.put(n, 0)
	}
}

// Set changes what c gets. Its debts stay. Errors: Config.Check's; then nothing is changed.
func (s *Scheduler) Set(c *Client, cfg Config, now int64) error {
	if err := cfg.Check(); err != nil {
		return err
	}
	work := c.work
	s.Idle(c)
	s.leave(c)
	s.place(c, cfg)
	if c.n.throttled {
		s.throttled.put(&c.n, 0)
	}
	if work {
		s.Ready(c, now)
	}
	return nil
}

// leave takes c, which has no work, out of its groups, and forgets those that are empty.
func (s *Scheduler) leave(c *Client) {
	for p := c.n.parent; p != nil; p = p.parent {
		if p.uses--; p.uses > 0 || p.parent == nil {
			break
		}
		s.throttled.drop(p)
		s.due.drop(p)
		delete(s.groups, p.name)
	}
	c.n.parent = nil
}

// Remove undoes Add.
func (s *Scheduler) Remove(c *Client) {
	if c.n.parent == nil {
		return
	}
	s.Idle(c)
	s.throttled.drop(&c.n)
	s.due.drop(&c.n)
	s.leave(c)
	s.clients--
}

// Clients returns how many clients there are.
func (s *Scheduler) Clients() int { return s.clients }

// Ready says that c has work.
func (s *Scheduler) Ready(c *Client, now int64) {
	if c.work {
		return
	}
	c.work = true
	if !c.n.throttled {
		s.activate(&c.n, now)
	}
}

// Idle says that c has no work. What it had left of the round it has again if it comes back within the round.
func (s *Scheduler) Idle(c *Client) {
	if c.work {
		c.work = false
		s.deactivate(&c.n)
	}
}

// Working reports whether c is one that has work.
func (c *Client) Working() bool { return c.work }

// Held reports whether a cap holds c back, its own or that of a group that it is in.
func (c *Client) Held() bool {
	for n := &c.n; n != nil; n = n.parent {
		if n.throttled {
			return true
		}
	}
	return false
}

// activate puts n, and the groups that it is in, among those that have work.
func (s *Scheduler) activate(n *node, now int64) {
	if n.client != nil {
		s.busy++
	}
	for n.parent != nil && n.in == nil && !n.throttled {
		n.enter()
		s.reserve(n, now)
		n = n.parent
	}
}

// deactivate undoes activate.
func (s *Scheduler) deactivate(n *node) {
	if n.in == nil {
		return
	}
	if n.client != nil {
		s.busy--
	}
	for n.in != nil {
		n.unlink()
		s.unreserve(n)
		s.due.drop(n)
		if n = n.parent; n.parent == nil || !n.empty() {
			break
		}
	}
}

// reserve notes that n, which has work, has a guarantee.
func (s *Scheduler) reserve(n *node, now int64) {
	switch {
	case !n.guaranteed || n.reserved:
	case n.mayGo(now):
		n.reserved = true
		tail := s.reserved.rprev
		n.rprev, n.rnext = tail, &s.reserved
		tail.rnext, s.reserved.rprev = n, n
	default:
		s.due.put(n, n.guaranteedAt())
	}
}

func (s *Scheduler) unreserve(n *node) {
	if n.reserved {
		n.reserved = false
		n.rprev.rnext, n.rnext.rprev = n.rnext, n.rprev
		n.rprev, n.rnext = nil, nil
	}
}

// wake lets go on those whose caps and guarantees have filled.
func (s *Scheduler) wake(now int64) {
	for n := s.throttled.first(); n != nil && n.at[capHeap] <= now; n = s.throttled.first() {
		if n.ops.empty(now) || n.bytes.empty(now) {
			s.throttled.put(n, n.capAt())
			continue
		}
		s.throttled.drop(n)
		n.throttled = false
		if n.client != nil && n.client.work || n.client == nil && !n.empty() {
			s.activate(n, now)
		}
	}
	for n := s.due.first(); n != nil && n.at[guaranteeHeap] <= now; n = s.due.first() {
		s.due.drop(n)
		s.reserve(n, now)
	}
}

// capAt returns when the caps of n let it go on.
func (n *node) capAt() int64 {
	t := int64(0)
	if n.limits.OpsCap > 0 {
		t = n.ops.at(fillFor)
	}
	if n.limits.BytesCap > 0 {
		t = max(t, n.bytes.at(fillFor))
	}
	return t
}

// Next returns the client whose work is to be done now, and how much of it; nil if none has any that may be done now. Say by Charge what was done,
// or by Idle that there was nothing.
func (s *Scheduler) Next(now int64) (*Client, Grant) {
	s.wake(now)
	g := Grant{Cost: math.MaxInt64, Ops: math.MaxInt64, Bytes: math.MaxInt64}
	n := &s.root
	if r := s.firstReserved(now); r != nil {
		n = r
		g.Cost = s.costs.Quantum
	}
	for n.client == nil {
		if n = n.pick(); n == nil {
			return nil, g
		}
		g.Cost = min(g.Cost, n.deficit)
	}
	if s.busy == 1 {
		g.Alone, g.Cost = true, math.MaxInt64
	}
	for p := n; p.parent != nil; p = p.parent {
		if p.limits.OpsCap > 0 {
			g.Ops = min(g.Ops, max(1, p.ops.left(now)))
		}
		if p.limits.BytesCap > 0 {
			g.Bytes = min(g.Bytes, max(1, p.bytes.left(now)))
		}
	}
	return n.client, g
}

// firstReserved returns the node that goes first by its guarantee, or nil.
func (s *Scheduler) firstReserved(now int64) *node {
	for n := s.reserved.rnext; n != &s.reserved; n = s.reserved.rnext {
		at := n.heldUntil()
		if at == 0 {
			if n.mayGo(now) {
				return n
			}
			at = n.guaranteedAt()
		}
		s.unreserve(n)
		s.due.put(n, at)
	}
	return nil
}

// heldUntil returns when the cap of a group that n is in lets it go on, or 0.
func (n *node) heldUntil() int64 {
	for p := n.parent; p != nil; p = p.parent {
		if p.throttled {
			return p.at[capHeap]
		}
	}
	return 0
}

// Charge says what was done for c: what it cost, and the operations and bytes that count against guarantees and caps. An operation that is done in parts
// may be counted there with its last one.
func (s *Scheduler) Charge(c *Client, cost, ops, bytes, now int64) {
	for n := &c.n; n.parent != nil; n = n.parent {
		n.pay(cost)
		if n.guaranteed {
			n.minOps.take(ops, now)
			n.minBytes.take(bytes, now)
			if n.reserved { // the next one's turn
				s.unreserve(n)
				s.reserve(n, now)
			}
		}
	}
	for n := &c.n; n != nil && n.parent != nil; n = n.parent {
		n.ops.take(ops, now)
		n.bytes.take(bytes, now)
		if !n.throttled && (n.ops.empty(now) || n.bytes.empty(now)) {
			s.throttle(n)
		}
	}
}

// throttle takes n out until its caps let it go on.
func (s *Scheduler) throttle(n *node) {
	s.deactivate(n)
	n.throttled = true
	s.throttled.put(n, n.capAt())
}

// NextAt returns when a client that a cap holds back may go on, and false if there is none.
func (s *Scheduler) NextAt() (at int64, ok bool) {
	if n := s.throttled.first(); n != nil {
		return n.at[capHeap], true
	}
	return 0, false
}
