package vswitch

// forward delivers a frame that q's client has sent, or holds it; then q.on is set. The reason is the sender's.
func (s *Switch) forward(q *txQueue, f *frame) Reason {
	p := q.p
	if f.src&multicast != 0 || f.src == serviceKey {
		return DropSpoof
	}
	if p.cfg.Unpinned {
		if r := s.learn(q, f); r != Delivered {
			return r
		}
	} else if r := p.guard(f); r != Delivered {
		return r
	}
	switch f.ether {
	case etherARP:
		if done, r := s.answerARP(q, f); done {
			return r
		}
	case etherIPv4:
		if done, r := s.serve(q, f); done {
			return r
		}
	}
	if f.dst == serviceKey {
		return DropService
	}
	if f.dst&multicast != 0 {
		return s.floodFrom(p, q.index, f)
	}
	to := q.lastTo
	if f.dst != q.lastDst || q.lastGen != s.table.gen || s.now-q.lastLook > ageStep {
		to = s.table.find(f.dst, p.cfg.Tenant, s.now)
		q.lastDst, q.lastGen, q.lastTo, q.lastLook = f.dst, s.table.gen, to, s.now
	}
	switch {
	case to == p:
		return DropNowhere
	case to == nil:
		return s.unknown(p, q.index, f)
	}
	rx := to.rx[q.index%len(to.rx)]
	r := s.send(f, rx)
	if r == DropRxFull && mayHold(f, rx) {
		q.hold(rx)
		return Delivered
	}
	if r >= DropRxFull {
		s.settle(p, to, r)
		return Delivered // as far as the sender is concerned
	}
	return r
}

// learn notes where the source of a frame from an unpinned port is, and refuses what is another port's.
func (s *Switch) learn(q *txQueue, f *frame) Reason {
	p := q.p
	if s.forged(p, f) {
		return DropSpoof
	}
	if f.src == p.mac || f.src == q.lastSrc && q.srcGen == s.table.gen && s.now-q.lastLearn < ageStep {
		return Delivered
	}
	if s.macs[f.src] != nil || f.src == p.cfg.GatewayMAC.key() || !s.table.learn(f.src, p, s.now) {
		return DropSpoof
	}
	q.lastSrc, q.srcGen, q.lastLearn = f.src, s.table.gen, s.now
	return Delivered
}

// forged reports whether f, which p has sent, claims an IP address that is another port's, the gateway's or the switch's.
func (s *Switch) forged(p *port, f *frame) bool {
	var ip uint32
	switch f.ether {
	case etherIPv4:
		ip, _ = f.ipv4()
	case etherARP:
		if a, ok := arpOf(f); ok {
			ip = a.senderIP
		}
	case etherIPv6:
		o := s.addrs6[[16]byte(f.head[f.l3+8:])]
		return o != nil && o != p
	}
	if ip == 0 {
		return false
	}
	o := s.addrs[ip]
	return o != nil && o != p || ip == p.gateway || ip == p.own
}

// unknown delivers a unicast frame whose destination no port has: to the uplink, and unless it is known to be there, to those of the tenant's
// ports that may have addresses which the switch does not know.
func (s *Switch) unknown(p *port, pair int, f *frame) Reason {
	r := s.toUplink(p, f)
	if r != DropNowhere && (f.dst == p.cfg.GatewayMAC.key() || s.up.beyond.has(f.dst, s.now)) {
		return r
	}
	for _, o := range p.tenant.ports {
		if o == p || !o.cfg.Unpinned || o.dead {
			continue
		}
		if !p.flood.take(s.now) {
			return DropFlood
		}
		s.copyTo(o, pair, f)
		p.count.Flooded++
		if r == DropNowhere {
			r = Delivered
		}
	}
	return r
}

// floodFrom delivers a broadcast or multicast frame of p to its tenant and the uplink.
func (s *Switch) floodFrom(p *port, pair int, f *frame) Reason {
	if !p.flood.take(s.now) {
		return DropFlood
	}
	r := s.toUplink(p, f)
	for _, o := range p.tenant.ports {
		if o != p && !o.dead {
			s.copyTo(o, pair, f)
			if r == DropNowhere {
				r = Delivered
			}
		}
	}
	return r
}

// copyTo delivers one of several copies of f. What goes wrong is counted at the receiver.
func (s *Switch) copyTo(o *port, pair int, f *frame) {
	if r := s.send(f, o.rx[pair%len(o.rx)]); r != Delivered {
		o.count.Drops[r]++
	}
}

// toUplink sends a frame of p to the uplink, unless it is meant for another tenant.
func (s *Switch) toUplink(p *port, f *frame) Reason {
	if s.up == nil || p.cfg.NoUplink {
		return DropNowhere
	}
	if f.ether == etherIPv4 {
		if _, dst := f.ipv4(); s.foreign(p, dst) {
			return DropTenant
		}
	}
	if f.ether == etherIPv6 && len(s.addrs6) > 0 {
		if o := s.addrs6[[16]byte(f.head[f.l3+24:])]; o != nil && o.tenant != p.tenant {
			return DropTenant
		}
	}
	return s.send(f, s.up)
}

// foreign reports whether the IPv4 address belongs to a port of another tenant.
func (s *Switch) foreign(p *port, ip uint32) bool {
	o := s.addrs[ip]
	return o != nil && o.tenant != p.tenant
}
