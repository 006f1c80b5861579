package vswitch

import (
	"encoding/binary"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// headBytes is how much of a frame is copied to private memory at most: Ethernet, IP with options, TCP with options.
const headBytes = 192

// Protocol numbers.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// frame is one frame on its way. Its head is private and checked; its body is the sender's memory.
type frame struct {
	hdr  virtionet.Header
	n    int      // bytes, without the header
	head []byte   // the first bytes, in buf
	body [][]byte // the rest

	dst, src uint64 // MAC addresses
	ether    uint16 // EtherType
	l3, l4   int    // offsets in head; l4 is 0 where there is none or it lies beyond
	proto    byte   // of l4
	fragment bool   // an IP fragment other than a first one
	pieces   bool   // has an IPv6 fragment header

	buf [virtionet.HeaderBytes + headBytes]byte
}

// load takes the frame in c, behind its virtio-net header, and parses it. Header and head are copied at once, and looked at in the copy
// only. It changes c's slices.
func (f *frame) load(c *ring.Chain, features uint64, mtu int) Reason {
	k := 0
	for _, s := range c.Readable {
		if k += copy(f.buf[k:], s); k == len(f.buf) {
			break
		}
	}
	if k < virtionet.HeaderBytes {
		f.n = 0
		return DropHeader
	}
	f.n = int(c.ReadableBytes) - virtionet.HeaderBytes
	if f.n < ethHeader {
		return DropShort
	}
	if f.n > virtionet.MaxFrame {
		return DropOversize
	}
	if f.hdr = virtionet.DecodeHeader(f.buf[:]); f.hdr != (virtionet.Header{}) {
		if err := f.hdr.Check(f.n, features); err != nil {
			return DropHeader
		}
	}
	f.head = f.buf[virtionet.HeaderBytes:k]
	f.body = ring.Drop(c.Readable, uint32(k))
	return f.check(mtu)
}

// set makes f a frame of private memory.
func (f *frame) set(b []byte) Reason { return f.setWith(virtionet.Header{}, b) }

// setWith makes f a frame of private memory behind a header that was checked.
func (f *frame) setWith(h virtionet.Header, b []byte) Reason {
	f.hdr, f.n = h, len(b)
	if f.n < ethHeader {
		return DropShort
	}
	f.head = f.buf[virtionet.HeaderBytes:]
	f.head = f.head[:copy(f.head, b)]
	f.body = f.body[:0]
	if len(b) > len(f.head) {
		f.body = append(f.body, b[len(f.head):])
	}
	return f.check(virtionet.MaxFrame)
}

// check parses f, and compares it with its header.
func (f *frame) check(mtu int) Reason {
	if r := f.parse(); r != Delivered {
		return r
	}
	h := &f.hdr
	if h.GSOType == virtionet.GSONone && f.n > mtu+ethHeader {
		return DropOversize
	}
	if h.Flags&virtionet.NeedsCsum != 0 {
		// The field lies behind the IP header, so that completing it cannot change an address that was checked.
		if f.l4 == 0 || f.fragment || int(h.CsumStart) < f.l4 || int(h.CsumStart)+int(h.CsumOffset)+2 > len(f.head) {
			return DropHeader
		}
	} else {
		h.CsumStart, h.CsumOffset = 0, 0
	}
	// What does not count is not passed on.
	h.Flags &= virtionet.NeedsCsum
	h.NumBuffers = 0
	if h.GSOType != virtionet.GSONone {
		n := f.headers()
		ip := h.GSOType&^virtionet.GSOECN == virtionet.GSOTCPv4
		if n == 0 || n >= f.n || ip != (f.ether == etherIPv4) || int(h.CsumStart) != f.l4 || h.CsumOffset != 16 {
			return DropHeader
		}
		if n-ethHeader+int(h.GSOSize) > mtu {
			return DropOversize
		}
		h.HdrLen = uint16(n)
	} else {
		h.HdrLen, h.GSOSize = 0, 0
	}
	return Delivered
}

// headers returns the length of a TCP frame's headers, or 0 when it is none or its headers are not in head.
func (f *frame) headers() int {
	if f.l4 == 0 || f.fragment || f.proto != protoTCP || f.l4+20 > len(f.head) {
		return 0
	}
	n := int(f.head[f.l4+12]>>4) * 4
	if n < 20 || f.l4+n > len(f.head) {
		return 0
	}
	return f.l4 + n
}

// parse finds the layers of f. Errors: DropShort, when a header is cut off or contradicts the frame's length;
// DropTagged.
func (f *frame) parse() Reason {
	b := f.head
	f.dst, f.src = keyOf(b), keyOf(b[6:])
	f.ether = binary.BigEndian.Uint16(b[12:])
	f.l3, f.l4, f.proto, f.fragment, f.pieces = ethHeader, 0, 0, false, false
	switch f.ether {
	case etherIPv4:
		return f.parseIPv4(b[ethHeader:])
	case etherIPv6:
		return f.parseIPv6(b[ethHeader:])
	case etherARP:
		if len(b) < ethHeader+arpBytes {
			return DropShort
		}
	case etherVLAN, etherQinQ:
		return DropTagged
	}
	return Delivered
}

func (f *frame) parseIPv4(b []byte) Reason {
	if len(b) < 20 || b[0]>>4 != 4 {
		return DropShort
	}
	ihl := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	gso := f.hdr.GSOType != virtionet.GSONone // then the length may be anything
	if ihl < 20 || ihl > len(b) || !gso && (total < ihl || total > f.n-ethHeader) {
		return DropShort
	}
	f.proto, f.l4 = b[9], ethHeader+ihl
	f.fragment = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	if gso && binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return DropHeader
	}
	return f.parseL4()
}

func (f *frame) parseIPv6(b []byte) Reason {
	if len(b) < 40 || b[0]>>4 != 6 {
		return DropShort
	}
	if f.hdr.GSOType == virtionet.GSONone && int(binary.BigEndian.Uint16(b[4:]))+40 > f.n-ethHeader {
		return DropShort
	}
	next, off := b[6], 40
	for {
		size := 0
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if off+8 > len(b) {
				return DropShort
			}
			size = int(b[off+1])*8 + 8
		case 44: // fragment
			if off+8 > len(b) {
				return DropShort
			}
			size, f.pieces = 8, true
			f.fragment = f.fragment || binary.BigEndian.Uint16(b[off+2:])&0xfff8 != 0
		}
		if size == 0 {
			break
		}
		next, off = b[off], off+size
		if off > len(b) || f.fragment {
			break
		}
	}
	f.proto, f.l4 = next, ethHeader+off
	if off > len(b) {
		// A chain of headers that is longer than anybody needs: it can only be meant to hide what follows (RFC 7113).
		return DropShort
	}
	return f.parseL4()
}

// parseL4 refuses a first fragment or whole packet without the ports or types that checks look at.
func (f *frame) parseL4() Reason {
	need := 0
	switch f.proto {
	case protoTCP:
		need = 20
	case protoUDP, protoICMP:
		need = 8
	case protoICMPv6:
		need = 4
	}
	if !f.fragment && f.l4+need > len(f.head) {
		return DropShort
	}
	return Delivered
}

// ports returns the source and destination port of a UDP or TCP frame that has them.
func (f *frame) ports() (src, dst uint16, ok bool) {
	if f.fragment || f.l4 == 0 || f.proto != protoUDP && f.proto != protoTCP {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(f.head[f.l4:]), binary.BigEndian.Uint16(f.head[f.l4+2:]), true
}

// ipv4 returns the source and destination address of an IPv4 frame.
func (f *frame) ipv4() (src, dst uint32) {
	b := f.head[f.l3:]
	return binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint32(b[16:])
}

// copyTo copies the whole frame to b and returns its length, which b must hold.
func (f *frame) copyTo(b []byte) int {
	n := copy(b, f.head)
	for _, s := range f.body {
		n += copy(b[n:], s)
	}
	return n
}
