package vswitch

import (
	"encoding/binary"

	"github.com/grailos/grail/ring/virtionet"
)

// ServiceMAC is the switch's own address, the same in every tenant.
var ServiceMAC = MAC{0x02, 0x67, 0x72, 0x6c, 0x00, 0x01}

var serviceKey = ServiceMAC.key()

// replyBytes is the longest frame that the services take and make.
const replyBytes = ethHeader + 1500

// serve answers an IPv4 frame of q's client that is for the switch itself.
func (s *Switch) serve(q *txQueue, f *frame) (done bool, r Reason) {
	p := q.p
	_, dst := f.ipv4()
	_, dp, ok := f.ports()
	udp := ok && f.proto == protoUDP
	switch {
	case udp && dp == 67 && p.ip != 0 && (f.dst&multicast != 0 || f.dst == serviceKey):
		if !p.service.take(s.now) {
			return true, DropService
		}
		return true, s.answerDHCP(q, f)
	case f.dst != serviceKey || dst != p.own || p.own == 0:
		return false, Delivered
	case !p.service.take(s.now):
		return true, DropService
	case udp && dp == 53:
		return true, s.answerDNS(q, f)
	case f.proto == protoICMP && !f.fragment:
		return true, s.answerPing(q, f)
	}
	return true, DropService
}

// datagram returns the payload of a UDP frame, copied to b, which is replyBytes long. Nil: it is malformed or too long.
func (f *frame) datagram(b []byte) []byte {
	if f.n > len(b) || f.hdr.GSOType != virtionet.GSONone || f.proto != protoUDP || f.fragment || f.l4 == 0 {
		return nil
	}
	b = b[:f.copyTo(b)]
	// A first fragment is not enough.
	if binary.BigEndian.Uint16(b[f.l3+6:])&0x2000 != 0 {
		return nil
	}
	n := int(binary.BigEndian.Uint16(f.head[f.l4+4:]))
	if n < 8 || f.l4+n > len(b) {
		return nil
	}
	return b[f.l4+8 : f.l4+n]
}

// datagramTo is the addresses of a UDP datagram in IPv4.
type datagramTo struct {
	dst, src         uint64 // MAC
	srcIP, dstIP     uint32
	srcPort, dstPort uint16
}

// frame writes the datagram with the payload to b, and returns the frame. The payload may lie in b where it belongs.
func (d *datagramTo) frame(b, payload []byte) []byte {
	const l3, l4 = ethHeader, ethHeader + 20
	be := binary.BigEndian
	n := copy(b[l4+8:], payload)
	b = b[:l4+8+n]
	putMAC(b, d.dst)
	putMAC(b[6:], d.src)
	be.PutUint16(b[12:], etherIPv4)
	clear(b[l3 : l4+8])
	b[l3], b[l3+6], b[l3+8], b[l3+9] = 0x45, 0x40, 64, protoUDP
	be.PutUint16(b[l3+2:], uint16(28+n))
	be.PutUint32(b[l3+12:], d.srcIP)
	be.PutUint32(b[l3+16:], d.dstIP)
	be.PutUint16(b[l3+10:], checksum(b[l3:l4]))
	be.PutUint16(b[l4:], d.srcPort)
	be.PutUint16(b[l4+2:], d.dstPort)
	be.PutUint16(b[l4+4:], uint16(8+n))
	var c sum
	c.pseudo(b[l3:], protoUDP, 8+n)
	c.add(b[l4:])
	putChecksum(b[l4+6:], ^c.value(), protoUDP)
	return b
}

func putMAC(b []byte, mac uint64) {
	binary.BigEndian.PutUint16(b, uint16(mac>>32))
	binary.BigEndian.PutUint32(b[2:], uint32(mac))
}

// answerPing answers an ICMP echo request.
func (s *Switch) answerPing(q *txQueue, f *frame) Reason {
	if f.n > replyBytes || f.head[f.l4] != 8 {
		return DropService
	}
	b := s.scratch[:f.copyTo(s.scratch[:])]
	total := int(binary.BigEndian.Uint16(f.head[f.l3+2:]))
	b = b[:ethHeader+total]
	copy(b[:f.l4], f.head)
	putMAC(b, f.src)
	putMAC(b[6:], serviceKey)
	copy(b[f.l3+12:], f.head[f.l3+16:f.l3+20])
	copy(b[f.l3+16:], f.head[f.l3+12:f.l3+16])
	b[f.l4] = 0
	binary.BigEndian.PutUint16(b[f.l4+2:], 0)
	binary.BigEndian.PutUint16(b[f.l4+2:], checksum(b[f.l4:]))
	// The IP header's checksum is the sender's: make it anew, it may be wrong.
	binary.BigEndian.PutUint16(b[f.l3+10:], 0)
	binary.BigEndian.PutUint16(b[f.l3+10:], checksum(b[f.l3:f.l4]))
	s.inject(q.p, q.index, b)
	return Delivered
}
