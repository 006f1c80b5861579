package vswitch

import "encoding/binary"

// Operations of ARP (RFC 826).
const (
	arpRequest = 1
	arpReply   = 2
)

const broadcast = uint64(1)<<48 - 1

// answerARP answers a broadcast ARP request of q's client for an address that the switch knows, so that others need not
// see it.
func (s *Switch) answerARP(q *txQueue, f *frame) (done bool, r Reason) {
	p := q.p
	a, ok := arpOf(f)
	if !ok || a.op != arpRequest || f.dst&multicast == 0 || a.senderIP == a.targetIP {
		return false, Delivered
	}
	var mac uint64
	o := s.addrs[a.targetIP]
	switch {
	case o == p:
		return true, Delivered // a probe for an address that is its own: nobody else has it
	case o != nil && o.tenant != p.tenant:
		return true, DropTenant
	case o != nil:
		mac = o.mac
	case a.targetIP == p.own && p.own != 0:
		mac = serviceKey
	case a.targetIP == p.gateway && p.gateway != 0:
		mac = p.cfg.GatewayMAC.key()
	}
	if mac == 0 {
		return false, Delivered
	}
	if !p.flood.take(s.now) {
		return true, DropFlood
	}
	s.inject(p, q.index, putARP(s.scratch[:], arp{
		op: arpReply, sender: mac, senderIP: a.targetIP, target: a.sender, targetIP: a.senderIP}, a.sender))
	return true, Delivered
}

// putARP writes an ARP frame to b and returns it.
func putARP(b []byte, a arp, dst uint64) []byte {
	be := binary.BigEndian
	b = b[:ethHeader+arpBytes]
	putMAC(b, dst)
	putMAC(b[6:], a.sender)
	be.PutUint16(b[12:], etherARP)
	p := b[ethHeader:]
	be.PutUint16(p, 1)
	be.PutUint16(p[2:], etherIPv4)
	p[4], p[5] = 6, 4
	be.PutUint16(p[6:], a.op)
	putMAC(p[8:], a.sender)
	be.PutUint32(p[14:], a.senderIP)
	putMAC(p[18:], a.target)
	be.PutUint32(p[24:], a.targetIP)
	return b
}

func number(a [4]byte) uint32 { return binary.BigEndian.Uint32(a[:]) }

// arp answers the uplink's requests for the ports' addresses, and learns where gateways are.
func (o *outlet) arp(f *frame) (done bool, r Reason) {
	s := o.sw
	a, ok := arpOf(f)
	if !ok || s.addrs[a.senderIP] != nil {
		return true, DropSpoof
	}
	if a.senderIP != 0 && a.sender == f.src {
		o.learnRouter(a.senderIP, a.sender)
	}
	p := s.addrs[a.targetIP]
	if a.op != arpRequest || f.dst&multicast == 0 || p == nil {
		return false, Delivered
	}
	if p.cfg.NoUplink {
		return true, DropNowhere
	}
	if !o.flood.take(s.now) {
		return true, DropFlood
	}
	o.inject(putARP(s.scratch[:], arp{
		op: arpReply, sender: p.mac, senderIP: a.targetIP, target: a.sender, targetIP: a.senderIP}, a.sender))
	return true, Delivered
}

// inject sends a frame of the switch's own, which the uplink's private head holds in full or whose memory stays as it is for the
// rest of the round.
func (o *outlet) inject(b []byte) {
	s := o.sw
	if r := s.reply.set(b); r != Delivered {
		panic("vswitch: own frame is malformed: " + r.String())
	}
	if r := s.send(&s.reply, o); r != Delivered {
		o.count.Drops[r]++
	}
	if len(s.reply.body) > 0 {
		o.flush()
	}
}
