package vswitch

import "time"

// Bounds of what is learned from the frames of ports that are not pinned.
const (
	maxLearned = 64 // addresses a port
	ageLimit   = int64(300 * time.Second)
	ageStep    = int64(time.Second) // an address that was seen within this time is not looked up again
)

// entry is one known address.
type entry struct {
	p      *port
	static bool  // configured: never aged, never taken away
	seen   int64 // ns
	noted  int64 // ns; as the journal has it
}

// table maps addresses of all tenants to ports.
type table struct {
	m   map[uint64]*entry // by address and tenant
	gen uint64            // changes with every change of where an address leads
}

func tableKey(mac uint64, tenant uint16) uint64 { return mac | uint64(tenant)<<48 }

// find returns the port that has the address, or nil.
func (t *table) find(mac uint64, tenant uint16, now int64) *port {
	e := t.m[tableKey(mac, tenant)]
	if e == nil {
		return nil
	}
	if !e.static && now-e.seen > ageLimit {
		t.remove(tableKey(mac, tenant), e)
		return nil
	}
	return e.p
}

// add enters a configured address. It takes the place of a learned one.
func (t *table) add(mac uint64, p *port) {
	k := tableKey(mac, p.cfg.Tenant)
	if e := t.m[k]; e != nil {
		t.remove(k, e)
	}
	t.m[k] = &entry{p: p, static: true}
	t.gen++
}

// learn notes that mac was seen at p. It reports false when the address is configured for another port: then
// the frame is forged.
func (t *table) learn(mac uint64, p *port, now int64) bool {
	k := tableKey(mac, p.cfg.Tenant)
	e := t.m[k]
	switch {
	case e == nil:
		if p.learned >= maxLearned && !t.evict(p) {
			return true
		}
		e = &entry{p: p, seen: now}
		t.m[k] = e
		p.learned++
		t.gen++
		p.sw.noteLearned(mac, e)
	case e.p == p:
		if e.seen = now; !e.static && now-e.noted >= noteStep {
			p.sw.noteLearned(mac, e)
		}
	case e.static:
		return false
	case p.learned < maxLearned:
		e.p.learned--
		p.learned++
		e.p, e.seen = p, now
		t.gen++
		p.sw.noteLearned(mac, e)
	}
	return true
}

// restore enters an address that was learned before p had its present client. Precondition: nothing is known of it.
func (t *table) restore(mac uint64, p *port, seen int64) {
	t.m[tableKey(mac, p.cfg.Tenant)] = &entry{p: p, seen: seen, noted: seen}
	p.learned++
	t.gen++
}

// evict removes an aged address of p, if there is one.
func (t *table) evict(p *port) bool {
	for k, e := range t.m {
		if e.p == p && !e.static && p.sw.now-e.seen > ageLimit {
			t.remove(k, e)
			return true
		}
	}
	return false
}

func (t *table) remove(k uint64, e *entry) {
	if !e.static {
		e.p.learned--
	}
	delete(t.m, k)
	t.gen++
}

// forget removes everything that leads to p.
func (t *table) forget(p *port) {
	for k, e := range t.m {
		if e.p == p {
			t.remove(k, e)
		}
	}
}
