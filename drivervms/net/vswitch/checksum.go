package vswitch

import (
	"encoding/binary"
	"math/bits"
)

// sum is a ones' complement sum of 16-bit words (RFC 1071), fed in pieces of any length.
type sum struct {
	acc uint64 // below 2^16 for each piece added
	odd bool   // an odd number of bytes was fed
}

// add feeds b.
func (s *sum) add(b []byte) {
	n := len(b)
	var a, c uint64
	for len(b) >= 32 {
		a, c = bits.Add64(a, binary.BigEndian.Uint64(b), c)
		a, c = bits.Add64(a, binary.BigEndian.Uint64(b[8:]), c)
		a, c = bits.Add64(a, binary.BigEndian.Uint64(b[16:]), c)
		a, c = bits.Add64(a, binary.BigEndian.Uint64(b[24:]), c)
		b = b[32:]
	}
	for len(b) >= 8 {
		a, c = bits.Add64(a, binary.BigEndian.Uint64(b), c)
		b = b[8:]
	}
	if len(b) > 0 {
		var t [8]byte
		copy(t[:], b)
		a, c = bits.Add64(a, binary.BigEndian.Uint64(t[:]), c)
	}
	a, c = bits.Add64(a, 0, c)
	f := fold(a) + uint16(c)
	if s.odd {
		f = f>>8 | f<<8
	}
	s.acc += uint64(f)
	if n&1 != 0 {
		s.odd = !s.odd
	}
}

// value returns the sum, not complemented.
func (s *sum) value() uint16 { return fold(s.acc) }

func fold(a uint64) uint16 {
	a = a>>32 + a&0xffffffff
	a = a>>16 + a&0xffff
	a = a>>16 + a&0xffff
	return uint16(a>>16 + a&0xffff)
}

// checksum returns the Internet checksum of b.
func checksum(b []byte) uint16 {
	var s sum
	s.add(b)
	return ^s.value()
}

// pseudo feeds the pseudo-header of a TCP or UDP packet of n bytes, header included, whose IP header is ip.
func (s *sum) pseudo(ip []byte, proto byte, n int) {
	var b [40]byte
	if ip[0]>>4 == 4 {
		copy(b[:8], ip[12:20])
		b[9] = proto
		binary.BigEndian.PutUint16(b[10:], uint16(n))
		s.add(b[:12])
		return
	}
	copy(b[:32], ip[8:40])
	binary.BigEndian.PutUint32(b[32:], uint32(n))
	b[39] = proto
	s.add(b[:40])
}
