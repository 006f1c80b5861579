package main

import (
	"encoding/binary"
	"net/netip"
)

// The protocols that netcheck speaks: ARP (RFC 826), IPv4 without options (RFC 791), ICMP echo (RFC 792), UDP (RFC 768).
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806

	arpRequest = 1
	arpReply   = 2

	protoICMP = 1
	protoUDP  = 17

	icmpReply   = 0
	icmpRequest = 8

	ethBytes  = 14
	arpBytes  = 28
	ipBytes   = 20
	l4Bytes   = 8 // ICMP echo and UDP alike
	ipAt      = ethBytes
	l4At      = ipAt + ipBytes
	payloadAt = l4At + l4Bytes
)

var be = binary.BigEndian

// mac is an Ethernet address.
type mac [6]byte

var broadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// packet is a frame that was received and understood.
type packet struct {
	from     mac
	src, dst netip.Addr
	proto    byte // 0: ARP

	op uint16 // of ARP
	// Of ICMP: type; and identifier and sequence number. Of UDP: ports.
	kind byte
	a, b uint16

	payload []byte // in the frame's memory
}

// decode reads a frame; false for one that is none of ours, is cut off, or has a wrong checksum.
func decode(f []byte) (p packet, ok bool) {
	if len(f) < ethBytes {
		return p, false
	}
	p.from = mac(f[6:])
	switch be.Uint16(f[12:]) {
	case etherARP:
		b := f[ethBytes:]
		if len(b) < arpBytes || be.Uint32(b) != 1<<16|etherIPv4 || b[4] != 6 || b[5] != 4 {
			return p, false
		}
		p.op, p.from = be.Uint16(b[6:]), mac(b[8:])
		p.src, p.dst = addr4(b[14:]), addr4(b[24:])
		return p, true
	case etherIPv4:
		return p, p.decodeIP(f[ipAt:])
	}
	return p, false
}

func (p *packet) decodeIP(b []byte) bool {
	if len(b) < ipBytes || b[0] != 0x45 || sum(0, b[:ipBytes]) != 0xffff || be.Uint16(b[6:])&0x3fff != 0 {
		return false
	}
	n := int(be.Uint16(b[2:]))
	if n < ipBytes+l4Bytes || n > len(b) {
		return false
	}
	p.proto, p.src, p.dst = b[9], addr4(b[12:]), addr4(b[16:])
	pseudo := sum(uint32(p.proto)+uint32(n-ipBytes), b[12:20])
	b = b[ipBytes:n]
	switch p.proto {
	case protoICMP:
		p.kind, p.a, p.b = b[0], be.Uint16(b[4:]), be.Uint16(b[6:])
		p.payload = b[l4Bytes:]
		return sum(0, b) == 0xffff
	case protoUDP:
		p.a, p.b = be.Uint16(b), be.Uint16(b[2:])
		n := int(be.Uint16(b[4:]))
		if n < l4Bytes || n > len(b) {
			return false
		}
		p.payload = b[l4Bytes:n]
		return be.Uint16(b[6:]) == 0 || sum(pseudo, b[:n]) == 0xffff
	}
	return false
}

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }

// sum adds b to a ones' complement sum (RFC 1071).
func sum(s uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(be.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return s
}

// arpFrame writes an ARP frame.
func arpFrame(op uint16, from, to mac, src, dst netip.Addr) []byte {
	f := make([]byte, ethBytes+arpBytes)
	copy(f, to[:])
	copy(f[6:], from[:])
	be.PutUint16(f[12:], etherARP)
	b := f[ethBytes:]
	be.PutUint32(b, 1<<16|etherIPv4)
	b[4], b[5] = 6, 4
	be.PutUint16(b[6:], op)
	copy(b[8:], from[:])
	copy(b[14:], src.AsSlice())
	if op == arpReply {
		copy(b[18:], to[:])
	}
	copy(b[24:], dst.AsSlice())
	return f
}

// ipFrame writes a frame with room for n bytes of payload behind a header of ICMP or UDP.
func ipFrame(from, to mac, src, dst netip.Addr, proto byte, n int) []byte {
	f := make([]byte, payloadAt+n)
	copy(f, to[:])
	copy(f[6:], from[:])
	be.PutUint16(f[12:], etherIPv4)
	b := f[ipAt:]
	b[0], b[8], b[9] = 0x45, 64, proto
	be.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	be.PutUint16(b[10:], ^uint16(sum(0, b[:ipBytes])))
	return f
}

// icmpFrame writes an echo request or reply.
func icmpFrame(from, to mac, src, dst netip.Addr, kind byte, id, seq uint16, payload []byte) []byte {
	f := ipFrame(from, to, src, dst, protoICMP, len(payload))
	b := f[l4At:]
	b[0] = kind
	be.PutUint16(b[4:], id)
	be.PutUint16(b[6:], seq)
	copy(b[l4Bytes:], payload)
	be.PutUint16(b[2:], ^uint16(sum(0, b)))
	return f
}

// udpFrame writes a datagram.
func udpFrame(from, to mac, src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	f := ipFrame(from, to, src, dst, protoUDP, len(payload))
	b := f[l4At:]
	be.PutUint16(b, sport)
	be.PutUint16(b[2:], dport)
	be.PutUint16(b[4:], uint16(len(b)))
	copy(b[l4Bytes:], payload)
	c := ^uint16(sum(sum(protoUDP+uint32(len(b)), f[ipAt+12:l4At]), b))
	if c == 0 {
		c = 0xffff
	}
	be.PutUint16(b[6:], c)
	return f
}
