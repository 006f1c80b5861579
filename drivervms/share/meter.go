package share

import "time"

// Account is what one client is charged. The zero Account is a new one.
type Account struct {
	CPU time.Duration // charged until now

	cost   int64 // noted in this round
	spent  int64 // ns on the caller's clock since the last Settle
	before int64 // the same, of the last period in which there was any
	open   bool  // is among Meter.open
}

// Use is what one ring of a client had done, and what that cost.
type Use struct {
	Account
	Ops, Bytes uint64
}

// Meter divides the processor time of a driver's VM among its clients, in proportion to the time that the driver's worker has spent on each. What nobody
// asked for by itself, such as waiting, polling, and the work of the VM's own process, goes the same way; if nobody was served lately, to those who
// were the last ones.
type Meter struct {
	Own time.Duration // charged to nobody: before the first client was served

	round []*Account // with cost noted in this round
	cost  int64      // noted in this round
	open  []*Account // with time spent in this period
	last  []*Account // of the last period with any
	total int64      // spent in this period
	sum   int64      // spent in the period of last
	used  time.Duration
}

// Note notes what was done for an account in the round at hand, as it costs. It allocates only while there are more accounts than ever before.
func (m *Meter) Note(a *Account, cost int64) {
	if cost <= 0 {
		return
	}
	if a.cost == 0 {
		m.round = append(m.round, a)
	}
	a.cost += cost
	m.cost += cost
}

// Noted returns what was noted in the round at hand.
func (m *Meter) Noted() int64 { return m.cost }

// Round ends a round that took so many ns: they were spent for the accounts as was noted. It reports whether anything was.
func (m *Meter) Round(ns int64) bool {
	for _, a := range m.round {
		if a.cost == m.cost {
			m.spend(a, ns)
		} else {
			m.spend(a, int64(float64(ns)*float64(a.cost)/float64(m.cost)))
		}
		a.cost = 0
	}
	any := len(m.round) > 0
	m.round, m.cost = m.round[:0], 0
	return any
}

// spend notes time spent for an account, in ns.
func (m *Meter) spend(a *Account, ns int64) {
	if ns <= 0 {
		return
	}
	if !a.open {
		a.open = true
		m.open = append(m.open, a)
	}
	a.spent += ns
	m.total += ns
}

// Settle charges the processor time used since the last Settle, given what was used in all.
func (m *Meter) Settle(used time.Duration) {
	d := max(used-m.used, 0)
	m.used += d
	if m.total > 0 {
		for _, a := range m.last {
			a.before = 0
		}
		m.last, m.open = m.open, m.last[:0]
		m.sum, m.total = m.total, 0
		for _, a := range m.last {
			a.before, a.spent, a.open = a.spent, 0, false
		}
	}
	if d == 0 {
		return
	}
	if m.sum == 0 {
		m.Own += d
		return
	}
	left := d
	for _, a := range m.last {
		part := time.Duration(float64(d) * (float64(a.before) / float64(m.sum)))
		part = min(part, left)
		a.CPU += part
		left -= part
	}
	m.last[0].CPU += left // what rounding left
}

// Forget ends an account. What it was charged stays charged to it.
func (m *Meter) Forget(a *Account) {
	m.cost -= a.cost
	m.total -= a.spent
	m.sum -= a.before
	m.round, m.open, m.last = without(m.round, a), without(m.open, a), without(m.last, a)
	a.cost, a.spent, a.before, a.open = 0, 0, 0, false
	if len(m.last) == 0 {
		m.sum = 0
	}
}

func without(list []*Account, a *Account) []*Account {
	for i := range list {
		if list[i] == a {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}
