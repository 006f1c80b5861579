package share

import "time"

// How much the buckets hold, and how long an empty one is left to fill: short enough not to be felt, long enough that a capped client does not cost a
// wake-up for every few bytes.
const (
	capBurst       = 20 * time.Millisecond
	guaranteeBurst = 10 * time.Millisecond
	fillFor        = 250 * time.Microsecond
)

// node is a client or a group in the tree.
type node struct {
	parent *node // nil: the root
	name   string
	limits Limits
	client *Client // nil: a group
	uses   int     // of a group: clients and groups in it

	quantum int64
	// deficit is what it may still take in its parent's round called round. Debts are carried over, savings are not.
	deficit int64
	round   int64

	ops, bytes       bucket // caps
	minOps, minBytes bucket // guarantees
	throttled        bool   // a cap has run out: it is in no list, and in Scheduler.throttled
	guaranteed       bool   // has a guarantee
	reserved         bool   // is in Scheduler.reserved

	// Among its siblings that have work: the list that it is in, or nil.
	in         *list
	prev, next *node

	// Among those with a guarantee.
	rprev, rnext *node
	at           [2]int64 // when its turn comes, in ns
	pos          [2]int   // where it stands in a heap, from 1 on; 0: not at all

	// Of a group.
	lists [3]list
	now   int   // which of lists holds those that have something left of the round; the other one is for those that have not
	turn  int64 // number of the round
	skip  int64 // rounds until the first of those that have nothing left has again; 0: there are none
}

// lists of a group: sparse come first; now and later change places with each round.
const sparse = 2

// list is a list of siblings.
type list struct{ head, tail *node }

func (l *list) push(n *node) {
	n.in, n.prev, n.next = l, l.tail, nil
	if l.tail != nil {
		l.tail.next = n
	} else {
		l.head = n
	}
	l.tail = n
}

// unlink takes n out of its list.
func (n *node) unlink() {
	l := n.in
	if l == nil {
		return
	}
	if n.prev != nil {
		n.prev.next = n.next
	} else {
		l.head = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	} else {
		l.tail = n.prev
	}
	n.in, n.prev, n.next = nil, nil, nil
}

// empty reports whether no child of the group has work.
func (n *node) empty() bool {
	return n.lists[0].head == nil && n.lists[1].head == nil && n.lists[sparse].head == nil
}

// alone reports whether n is the only one of its siblings that has work.
func (n *node) alone() bool {
	if n.prev != nil || n.next != nil {
		return false
	}
	for i := range n.parent.lists {
		if l := &n.parent.lists[i]; l != n.in && l.head != nil {
			return false
		}
	}
	return true
}

// set takes over limits.
func (n *node) set(l Limits, quantum int64) {
	n.limits = l
	n.quantum = max(1, quantum*l.weight()/DefaultWeight)
	n.deficit = min(n.deficit, n.quantum)
	n.ops.set(l.OpsCap, capBurst)
	n.bytes.set(l.BytesCap, capBurst)
	n.minOps.set(l.OpsGuarantee, guaranteeBurst)
	n.minBytes.set(l.BytesGuarantee, guaranteeBurst)
	n.guaranteed = l.OpsGuarantee > 0 || l.BytesGuarantee > 0
}

// manyRounds is a number of rounds in which any debt is paid.
const manyRounds = 1 << 24

// replenish gives n its quantum for each round that has begun since the last time.
func (n *node) replenish() {
	k := n.parent.turn - n.round
	if k == 0 {
		return
	}
	n.round = n.parent.turn
	n.deficit = min(n.deficit+min(k, manyRounds)*n.quantum, n.quantum)
}

// postpone puts n, which has nothing left of the round, among those that wait for the next one.
func (n *node) postpone() {
	p := n.parent
	n.unlink()
	p.lists[1-p.now].push(n)
	if need := 1 - n.deficit/n.quantum; p.skip == 0 || need < p.skip {
		p.skip = need
	}
}

// enter puts n, which has work, among its siblings.
func (n *node) enter() {
	n.replenish()
	if n.deficit > 0 {
		n.parent.lists[sparse].push(n)
	} else {
		n.postpone()
	}
}

// pick returns the child of group n whose turn it is, or nil if none has work.
func (n *node) pick() *node {
	for {
		c := n.lists[sparse].head
		if c == nil {
			c = n.lists[n.now].head
		}
		if c == nil {
			if n.lists[1-n.now].head == nil {
				return nil
			}
			n.turn += max(n.skip, 1)
			n.skip = 0
			n.now = 1 - n.now
			continue
		}
		if c.replenish(); c.deficit > 0 {
			return c
		}
		c.postpone()
	}
}

// maxDebt is what a guarantee may have a node take beyond its weight, at most.
const maxDebt = 16 << 20

// pay takes cost from what n has left of the round.
func (n *node) pay(cost int64) {
	n.replenish()
	n.deficit = max(n.deficit-cost, -maxDebt)
	if n.in == nil || n.deficit > 0 {
		return
	}
	n.postpone()
}

// mayGo reports whether n has something left of a guarantee.
func (n *node) mayGo(now int64) bool {
	return n.guaranteed && (n.limits.OpsGuarantee > 0 && !n.minOps.empty(now) || n.limits.BytesGuarantee > 0 && !n.minBytes.empty(now))
}

// guaranteedAt returns when n will have something left of a guarantee again.
func (n *node) guaranteedAt() int64 {
	t := int64(1<<63 - 1)
	if n.limits.OpsGuarantee > 0 {
		t = n.minOps.at(fillFor)
	}
	if n.limits.BytesGuarantee > 0 {
		t = min(t, n.minBytes.at(fillFor))
	}
	return t
}
