package vswitch

import (
	"encoding/binary"
	"errors"

	"github.com/grailos/grail/hv/state"
)

// StateVersion is the version of what a switch keeps in its state region. Another version's state is dropped, so it changes with
// the records below and with Counters.
const StateVersion = 1

// The records of the state. Addresses are in 8 bytes, times are Unix time in ns, numbers are little-endian.
const (
	recRouter  = 1 // IPv4 address (8 bytes), MAC address
	recQuery   = 2 // port (address and tenant), expiry, ID (2), port number (2), unused (4)
	recLearned = 3 // port (address and tenant), MAC address, when it was seen
	recStation = 4 // MAC address, when it was seen
	recLeft    = 6 // port (address and tenant) without a client, since when
	recBack    = 7 // port (address and tenant) with a client again, 1 when what was learned at it is kept
	recNames   = 5 // tenant (2), then for each name its IPv4 address (4), its length (1) and itself
)

// noteStep is how old the journal's idea of when an address was seen may become, in ns.
const noteStep = ageLimit / 5

// uplinkKey stands for the uplink among the keys of counters.
const uplinkKey = ^uint64(0)

// memory is what the switch knows that is worth more than its rings. What is in the log outlives it.
type memory struct {
	log      *state.Log // nil: nothing is kept
	counters *state.Cells[Counters]
	shelf    shelf
	record   [24]byte
	names    []byte
	refused  int
}

func newMemory() memory {
	return memory{counters: state.NewCells[Counters](nil), shelf: newShelf()}
}

// TakeOver makes the region the switch's own: it goes on from what a predecessor has kept there, and keeps there what a
// successor is to know. What makes no sense is left out; refused counts that. Counters go on where the predecessor's ended. Precondition: nobody
// else writes to the region any more. Errors: there are ports already; those of state.Open.
func (s *Switch) TakeOver(region []byte) (taken state.Taken, refused int, err error) {
	if len(s.ports) > 0 {
		return taken, 0, errors.New("a switch with ports cannot take over another's state")
	}
	m := &s.memory
	s.now = s.clock()
	log, taken, err := state.Open(region, StateVersion, s.replay)
	if err != nil {
		return taken, 0, err
	}
	m.log, m.counters = log, state.NewCells[Counters](log.Words())
	if s.up != nil {
		s.up.count = s.countersOf(uplinkKey)
	}
	log.Start(s.snapshot)
	return taken, m.refused, nil
}

// countersOf returns the counters of a port or of the uplink.
func (s *Switch) countersOf(key uint64) *Counters {
	return s.memory.counters.Of(key, func(k uint64) bool {
		p := s.macs[k&(1<<48-1)]
		return k == uplinkKey || p != nil && p.key() == k
	})
}

// key names the port for as long as it is configured: in any instance, and whoever is its client.
func (p *port) key() uint64 { return tableKey(p.mac, p.cfg.Tenant) }

// unix returns the Unix time of a time of the switch's clock, and local is the opposite, which never returns a time to come.
func (s *Switch) unix(t int64) uint64 { return uint64(s.wall() - (s.now - t)) }

func (s *Switch) local(unix uint64) int64 {
	age := s.wall() - int64(unix)
	return s.now - min(max(age, 0), 1<<62)
}

// put3 returns a record of three numbers.
func (m *memory) put3(a, b, c uint64) []byte {
	le := binary.LittleEndian
	le.PutUint64(m.record[:], a)
	le.PutUint64(m.record[8:], b)
	le.PutUint64(m.record[16:], c)
	return m.record[:]
}

// noteLearned keeps that an address was learned or seen again.
func (s *Switch) noteLearned(mac uint64, e *entry) {
	e.noted = s.now
	if s.memory.log != nil {
		s.memory.log.Append(recLearned, s.learnedRecord(e.p.key(), mac, e.seen))
	}
}

func (s *Switch) learnedRecord(port, mac uint64, seen int64) []byte {
	return s.memory.put3(port, mac, s.unix(seen))
}

func (s *Switch) noteLeft(port uint64) {
	if s.memory.log != nil {
		s.memory.log.Append(recLeft, s.memory.put3(port, s.unix(s.now), 0)[:16])
	}
}

func (s *Switch) noteBack(port uint64, kept bool) {
	if s.memory.log == nil {
		return
	}
	v := uint64(0)
	if kept {
		v = 1
	}
	s.memory.log.Append(recBack, s.memory.put3(port, v, 0)[:16])
}

func (s *Switch) noteStation(mac uint64, st *station) {
	st.noted = s.now
	if s.memory.log != nil {
		s.memory.log.Append(recStation, s.memory.put3(mac, s.unix(st.seen), 0)[:16])
	}
}

func (s *Switch) noteRouter(ip uint32, mac uint64) {
	if s.memory.log != nil {
		s.memory.log.Append(recRouter, s.memory.put3(uint64(ip), mac, 0)[:16])
	}
}

func (s *Switch) noteQuery(q *query) {
	if s.memory.log != nil {
		s.memory.log.Append(recQuery, s.queryRecord(q))
	}
}

func (s *Switch) queryRecord(q *query) []byte {
	return s.memory.put3(q.p.key(), s.unix(q.expiry), uint64(q.id)|uint64(q.from)<<16)
}

// noteNames keeps a tenant's names, if they are not too many: the host tells them again to a switch that does not have them.
func (s *Switch) noteNames(id uint16, t *tenant) {
	if b := s.namesRecord(id, t); b != nil && s.memory.log != nil {
		s.memory.log.Append(recNames, b)
	}
}

func (s *Switch) namesRecord(id uint16, t *tenant) []byte {
	b := binary.LittleEndian.AppendUint16(s.memory.names[:0], id)
	for n, ip := range t.names {
		b = binary.LittleEndian.AppendUint32(b, ip)
		b = append(append(b, byte(len(n))), n...)
	}
	if s.memory.names = b; len(b) > state.MaxRecord {
		return nil
	}
	return b
}

// snapshot puts all that a successor is to know.
func (s *Switch) snapshot(put state.Put) {
	m := &s.memory
	if s.up != nil {
		for ip, mac := range s.up.router {
			put(recRouter, m.put3(uint64(ip), mac, 0)[:16])
		}
	}
	for i := range s.pending.q {
		if q := &s.pending.q[i]; q.p != nil && s.now < q.expiry {
			put(recQuery, s.queryRecord(q))
		}
	}
	for k, e := range s.table.m {
		if !e.static && s.now-e.seen <= ageLimit {
			e.noted = s.now
			put(recLearned, s.learnedRecord(e.p.key(), k&(1<<48-1), e.seen))
		}
	}
	m.shelf.each(func(port, mac uint64, seen int64) { put(recLearned, s.learnedRecord(port, mac, seen)) })
	for port, at := range m.shelf.left {
		put(recLeft, m.put3(port, s.unix(at), 0)[:16])
	}
	for id, t := range s.tenants {
		if len(t.names) == 0 {
			continue
		}
		if b := s.namesRecord(id, t); b != nil {
			put(recNames, b)
		}
	}
	if s.up != nil {
		for mac, st := range s.up.beyond.m {
			if s.now-st.seen <= ageLimit {
				st.noted = s.now
				put(recStation, m.put3(mac, s.unix(st.seen), 0)[:16])
			}
		}
	}
}

// replay takes over one record, unless it makes no sense. Who wrote it may have been out of its mind.
func (s *Switch) replay(kind uint16, b []byte) {
	if !s.take(kind, b) {
		s.memory.refused++
	}
}

func (s *Switch) take(kind uint16, b []byte) bool {
	if kind == recNames {
		return s.takeNames(b)
	}
	var v [3]uint64
	if len(b)%8 != 0 || len(b) > len(s.memory.record) {
		return false
	}
	for i := range len(b) / 8 {
		v[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	switch {
	case kind == recRouter && len(b) == 16:
		if s.up == nil || v[0] == 0 || v[0] > 1<<32-1 || !unicast(v[1]) || len(s.up.router) >= maxRouters {
			return false
		}
		s.up.router[uint32(v[0])] = v[1]
	case kind == recQuery && len(b) == 24:
		left := int64(v[1]) - s.wall()
		if left <= 0 || left > queryLimit {
			return left <= 0 // it is over, or nobody asks for that long
		}
		return s.memory.shelf.ask(v[0], query{id: uint16(v[2]), from: uint16(v[2] >> 16), expiry: s.now + left})
	case kind == recLearned && len(b) == 24:
		return unicast(v[0]&(1<<48-1)) && unicast(v[1]) && s.memory.shelf.put(v[0], v[1], s.local(v[2]), s.now)
	case kind == recStation && len(b) == 16:
		seen := s.local(v[1])
		if s.up == nil || !unicast(v[0]) || len(s.up.beyond.m) >= maxStations {
			return false
		}
		if s.now-seen <= ageLimit {
			s.up.beyond.m[v[0]] = &station{seen: seen, noted: seen}
		}
	case kind == recLeft && len(b) == 16:
		s.memory.shelf.leave(v[0], s.local(v[1]))
	case kind == recBack && len(b) == 16 && v[1] <= 1:
		if delete(s.memory.shelf.left, v[0]); v[1] == 0 {
			s.memory.shelf.forget(v[0])
		}
	default:
		return false
	}
	return true
}

func (s *Switch) takeNames(b []byte) bool {
	if len(b) < 2 {
		return false
	}
	id, names := binary.LittleEndian.Uint16(b), map[string]uint32{}
	for b = b[2:]; len(b) > 0; {
		if len(b) < 5 || len(b) < 5+int(b[4]) || len(names) >= MaxNames {
			return false
		}
		name := string(b[5 : 5+int(b[4])])
		if !validName(name) {
			return false
		}
		names[name] = binary.LittleEndian.Uint32(b)
		b = b[5+len(name):]
	}
	if s.tenants[id] == nil {
		if len(s.tenants) >= MaxPorts {
			return false
		}
		s.tenants[id] = &tenant{}
	}
	s.tenants[id].names = names
	return true
}

// unicast reports whether mac is the address of one station, and not the switch's own.
func unicast(mac uint64) bool {
	return mac != 0 && mac < 1<<48 && mac&multicast == 0 && mac != serviceKey
}
