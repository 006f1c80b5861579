package vswitch

import "time"

// maxShelved bounds the addresses on a shelf.
const maxShelved = 8192

// absence is how long a port may be without a client, in ns, before what was learned at it is dropped: a switch that is replaced, or a guest that
// sets up its card anew, takes less.
const absence = int64(5 * time.Second)

// shelf keeps what is known of ports that have no client: of those that a predecessor served, until they are attached here, and of those whose
// queues come and go.
type shelf struct {
	ports   map[uint64]map[uint64]int64 // by port: addresses and when they were seen, ns
	of      map[uint64]uint64           // the port of an address and tenant
	left    map[uint64]int64            // when a port on the shelf lost its client, ns; without an entry it had one to the end
	queries []shelvedQuery
}

type shelvedQuery struct {
	port uint64
	query
}

func newShelf() shelf {
	return shelf{ports: map[uint64]map[uint64]int64{}, of: map[uint64]uint64{}, left: map[uint64]int64{}}
}

// put keeps that an address was seen at a port, in place of what is kept of the same address at another port of the tenant. It reports
// false when there is no room.
func (h *shelf) put(port, mac uint64, seen, now int64) bool {
	k := tableKey(mac, uint16(port>>48))
	if old, ok := h.of[k]; ok && old != port {
		h.drop(old, k, mac)
	}
	if now-seen > ageLimit {
		h.drop(port, k, mac)
		return true
	}
	at := h.ports[port]
	if _, known := at[mac]; !known && (len(at) >= maxLearned || len(h.of) >= maxShelved) {
		return false
	}
	if at == nil {
		at = map[uint64]int64{}
		h.ports[port] = at
	}
	at[mac], h.of[k] = seen, port
	return true
}

func (h *shelf) drop(port, k, mac uint64) {
	if at := h.ports[port]; at != nil {
		delete(at, mac)
		delete(h.of, k)
		if len(at) == 0 {
			delete(h.ports, port)
			delete(h.left, port)
		}
	}
}

// ask keeps a query of a port.
func (h *shelf) ask(port uint64, q query) bool {
	if len(h.queries) >= maxQueries {
		return false
	}
	h.queries = append(h.queries, shelvedQuery{port, q})
	return true
}

// each calls f with every address.
func (h *shelf) each(f func(port, mac uint64, seen int64)) {
	for port, at := range h.ports {
		for mac, seen := range at {
			f(port, mac, seen)
		}
	}
}

// forget drops all addresses of a port.
func (h *shelf) forget(port uint64) {
	for mac := range h.ports[port] {
		h.drop(port, tableKey(mac, uint16(port>>48)), mac)
	}
}

// leave notes that a port lost its client, if addresses of it are kept.
func (h *shelf) leave(port uint64, at int64) bool {
	if h.ports[port] == nil {
		return false
	}
	h.left[port] = at
	return true
}

// back notes that a port has a client again. What is kept of it stays, unless it was without one for too long. It reports whether it had been
// without one, as far as anything is kept of it.
func (h *shelf) back(port uint64, now int64) (kept, absent bool) {
	at, absent := h.left[port]
	delete(h.left, port)
	if absent && now-at > absence {
		h.forget(port)
		return false, true
	}
	return true, absent
}

// shelve keeps what the switch knows of p, which loses its client, for a while.
func (s *Switch) shelve(p *port) {
	for k, e := range s.table.m {
		if e.p == p && !e.static {
			s.memory.shelf.put(p.key(), k&(1<<48-1), e.seen, s.now)
		}
	}
	if s.memory.shelf.leave(p.key(), s.now) {
		s.noteLeft(p.key())
	}
}

// revive gives p back what is kept of it, where nothing better is known by now.
func (s *Switch) revive(p *port) {
	h := &s.memory.shelf
	if other, ok := h.of[p.key()]; ok { // somebody used the address before it was the port's
		h.drop(other, p.key(), p.mac)
	}
	if kept, absent := h.back(p.key(), s.now); absent {
		s.noteBack(p.key(), kept)
	}
	for mac, seen := range h.ports[p.key()] {
		k := tableKey(mac, p.cfg.Tenant)
		h.drop(p.key(), k, mac)
		if !p.cfg.Unpinned || s.macs[mac] != nil || mac == p.cfg.GatewayMAC.key() || s.table.m[k] != nil || s.now-seen > ageLimit {
			continue
		}
		s.table.restore(mac, p, seen)
	}
	kept := h.queries[:0]
	for _, q := range h.queries {
		if q.port != p.key() {
			kept = append(kept, q)
			continue
		}
		q.p = p
		s.pending.add(q.query)
	}
	h.queries = kept
}
