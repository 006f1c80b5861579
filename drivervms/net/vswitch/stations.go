package vswitch

// maxStations bounds the addresses behind the uplink that the switch knows.
const maxStations = 2048

// station is an address behind the uplink.
type station struct {
	seen  int64 // ns
	noted int64 // ns; as the journal has it
}

// stations are the addresses from which frames came over the uplink. They are no tenant's: a port's address is looked for among them only when no
// port of its tenant has it.
type stations struct {
	m         map[uint64]*station
	last      uint64 // the source of the last frame
	lastLearn int64  // ns
	lastSweep int64  // ns
}

// has reports whether mac was seen behind the uplink.
func (t *stations) has(mac uint64, now int64) bool {
	st := t.m[mac]
	return st != nil && now-st.seen <= ageLimit
}

// learn notes that a frame came from mac.
func (o *outlet) learn(mac uint64) {
	t, now := &o.beyond, o.sw.now
	if mac == t.last && now-t.lastLearn < ageStep {
		return
	}
	st := t.m[mac]
	known := st != nil
	if !known {
		if !unicast(mac) || len(t.m) >= maxStations && !t.sweep(now) {
			return
		}
		st = &station{}
		t.m[mac] = st
	}
	st.seen, t.last, t.lastLearn = now, mac, now
	if !known || now-st.noted >= noteStep {
		o.sw.noteStation(mac, st)
	}
}

// sweep removes the addresses that have aged, at most once a second, and reports whether there is room.
func (t *stations) sweep(now int64) bool {
	if now-t.lastSweep < ageStep {
		return false
	}
	t.lastSweep = now
	for mac, st := range t.m {
		if now-st.seen > ageLimit {
			delete(t.m, mac)
		}
	}
	return len(t.m) < maxStations
}

// learnRouter notes at which MAC address an IPv4 address behind the uplink is.
func (o *outlet) learnRouter(ip uint32, mac uint64) {
	old, known := o.router[ip]
	if old == mac || !known && len(o.router) >= maxRouters {
		return
	}
	o.router[ip] = mac
	o.sw.noteRouter(ip, mac)
}
