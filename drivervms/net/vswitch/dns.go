package vswitch

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameTTL is how long clients may remember a name, in seconds. VMs come and go.
const nameTTL = 5

// maxQueries bounds the queries that wait for the upstream server's answer; the oldest gives way.
const (
	maxQueries = 512
	queryLimit = int64(5 * time.Second)
)

// query is one that was passed on.
type query struct {
	p      *port
	id     uint16
	from   uint16 // port
	expiry int64  // ns
}

// pendingQueries are the queries that were passed on.
type pendingQueries struct {
	q    [maxQueries]query
	next int
}

func (t *pendingQueries) add(q query) {
	t.q[t.next] = q
	t.next = (t.next + 1) % len(t.q)
}

// take finds a query and forgets it.
func (t *pendingQueries) take(p *port, id, from uint16, now int64) bool {
	for i := range t.q {
		q := &t.q[i]
		if q.p == p && q.id == id && q.from == from {
			ok := now < q.expiry
			*q = query{}
			return ok
		}
	}
	return false
}

// SetNames replaces a tenant's table of names, beside the names of its ports. Names are without the domain. Errors: too
// many, or no names and IPv4 addresses; then nothing changes.
func (s *Switch) SetNames(id uint16, names map[string]netip.Addr) error {
	if len(names) > MaxNames {
		return fmt.Errorf("%d names, the limit is %d", len(names), MaxNames)
	}
	m := make(map[string]uint32, len(names))
	for n, a := range names {
		if !validName(n) || !a.Is4() {
			return fmt.Errorf("name %q with address %s", n, a)
		}
		m[strings.ToLower(n)] = number(a.As4())
	}
	t := s.tenants[id]
	if t == nil {
		if len(s.tenants) >= MaxPorts {
			return fmt.Errorf("%d tenants, the limit is %d", len(s.tenants)+1, MaxPorts)
		}
		t = &tenant{}
		s.tenants[id] = t
	}
	if t.names == nil || !maps.Equal(t.names, m) {
		t.names = m
		s.noteNames(id, t)
	}
	return nil
}

// lookup returns the address of a name within the tenant.
func (t *tenant) lookup(name string) (uint32, bool) {
	if a, ok := t.names[name]; ok {
		return a, true
	}
	for _, p := range t.ports {
		if p.ip != 0 && strings.EqualFold(p.cfg.Name, name) {
			return p.ip, true
		}
	}
	return 0, false
}

// answerDNS answers a query for a name of the tenant, and passes others on.
func (s *Switch) answerDNS(q *txQueue, f *frame) Reason {
	p := q.p
	payload := f.datagram(s.scratch[:])
	if payload == nil || p.ip == 0 {
		return DropService
	}
	s.Served++
	answer, pass := dnsAnswer(p.tenant, p.cfg.Domain, payload)
	if answer == nil && !pass {
		return DropService
	}
	sp, _, _ := f.ports()
	if pass {
		if s.passOn(p, sp, payload) {
			return Delivered
		}
		answer = dnsFailure(payload)
	}
	if answer == nil || len(answer) > replyBytes-ethHeader-28 {
		return DropService
	}
	d := datagramTo{dst: f.src, src: serviceKey, srcIP: p.own, dstIP: p.ip, srcPort: 53, dstPort: sp}
	s.inject(p, q.index, d.frame(s.scratch[:], answer))
	return Delivered
}

// dnsAnswer returns the answer to the query in b, or that it is to be passed on, or nothing when there is no answer to give. It
// does not panic, whatever is in b.
func dnsAnswer(t *tenant, domain string, b []byte) (answer []byte, pass bool) {
	defer func() {
		if recover() != nil {
			answer, pass = nil, false
		}
	}()
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.Response {
		return nil, false
	}
	reply := dnsmessage.Header{ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}
	question, err := p.Question()
	switch {
	case h.OpCode != 0:
		reply.RCode = dnsmessage.RCodeNotImplemented
		return pack(reply, nil, 0), false
	case err != nil:
		reply.RCode = dnsmessage.RCodeFormatError
		return pack(reply, nil, 0), false
	}
	if _, err := p.Question(); err != dnsmessage.ErrSectionDone {
		reply.RCode = dnsmessage.RCodeFormatError
		return pack(reply, nil, 0), false
	}
	name := strings.TrimSuffix(strings.ToLower(question.Name.String()), ".")
	local, inside := strings.CutSuffix(name, "."+strings.ToLower(domain))
	if !inside && strings.Contains(name, ".") || name == "" || question.Class != dnsmessage.ClassINET {
		return nil, true
	}
	reply.Authoritative = true
	ip, ok := t.lookup(local)
	if !ok {
		reply.RCode = dnsmessage.RCodeNameError
	}
	if question.Type != dnsmessage.TypeA && question.Type != dnsmessage.TypeALL {
		ip = 0
	}
	return pack(reply, &question, ip), false
}

// pack returns a message with at most one question and one answer, or nil.
func pack(h dnsmessage.Header, q *dnsmessage.Question, ip uint32) []byte {
	m := dnsmessage.Message{Header: h}
	if q != nil {
		m.Questions = []dnsmessage.Question{*q}
	}
	if ip != 0 && q != nil {
		var a dnsmessage.AResource
		binary.BigEndian.PutUint32(a.A[:], ip)
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: nameTTL},
			Body:   &a,
		}}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// dnsFailure returns SERVFAIL for the query in b, or nil. Precondition: dnsAnswer has parsed it.
func dnsFailure(b []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	return pack(dnsmessage.Header{ID: h.ID, Response: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true,
		RCode: dnsmessage.RCodeServerFailure}, &q, 0)
}

// passOn sends the query in payload to the upstream server, in the client's name. False: there is none, or nobody knows the way.
func (s *Switch) passOn(p *port, from uint16, payload []byte) bool {
	if s.up == nil || p.cfg.NoUplink || !p.cfg.Upstream.IsValid() || len(payload) < 12 {
		return false
	}
	up := number(p.cfg.Upstream.As4())
	mac, ok := s.up.router[up]
	if !ok && p.cfg.Gateway.IsValid() {
		if mac = p.cfg.GatewayMAC.key(); mac == 0 {
			gw := number(p.cfg.Gateway.As4())
			if mac = s.up.router[gw]; mac == 0 {
				// Ask, for the client's next attempt.
				s.up.inject(putARP(s.scratch[:], arp{op: arpRequest, sender: p.mac, senderIP: p.ip, targetIP: gw}, broadcast))
			}
		}
	}
	if mac == 0 {
		return false
	}
	q := query{p: p, id: binary.BigEndian.Uint16(payload), from: from, expiry: s.now + queryLimit}
	s.pending.add(q)
	s.noteQuery(&q)
	d := datagramTo{dst: mac, src: p.mac, srcIP: p.ip, dstIP: up, srcPort: from, dstPort: 53}
	s.up.inject(d.frame(s.scratch[:], payload))
	return true
}

// answerQuery hands the upstream server's answer to the client that asked the switch. It reports whether f was one.
func (o *outlet) answerQuery(f *frame) bool {
	s := o.sw
	sp, dp, ok := f.ports()
	if !ok || f.proto != protoUDP || sp != 53 {
		return false
	}
	src, dst := f.ipv4()
	p := s.addrs[dst]
	if p == nil || p.dead || !p.cfg.Upstream.IsValid() || src != number(p.cfg.Upstream.As4()) {
		return false
	}
	payload := f.datagram(s.scratch[:])
	if len(payload) < 12 || !s.pending.take(p, binary.BigEndian.Uint16(payload), dp, s.now) {
		return false
	}
	d := datagramTo{dst: p.mac, src: serviceKey, srcIP: p.own, dstIP: p.ip, srcPort: 53, dstPort: dp}
	s.inject(p, 0, d.frame(s.scratch[:], payload))
	return true
}
