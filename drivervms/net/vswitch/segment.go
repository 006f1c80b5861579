package vswitch

import (
	"encoding/binary"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// maxSegments bounds the frames that one large frame is cut into, so that a client cannot have the switch work for
// ever by asking for segments of a byte.
const maxSegments = 160

// sink is where frames go: a port's receive queue, or the uplink.
type sink interface {
	// takes returns the features among Offloads that the sink takes.
	takes() uint64
	// longest returns the longest frame that needs no segmentation, in bytes.
	longest() int
	// put delivers one frame of n bytes in all. It keeps neither head nor body beyond the round.
	put(h *virtionet.Header, head []byte, body [][]byte, n int) Reason
}

// send delivers f to the sink, in a form that it takes. Precondition: f was checked.
func (s *Switch) send(f *frame, to sink) Reason {
	takes := to.takes()
	if f.hdr.GSOType != virtionet.GSONone {
		if !takesGSO(f.hdr.GSOType, takes) {
			return s.segment(f, to, takes)
		}
		if int(f.hdr.HdrLen)+int(f.hdr.GSOSize) > to.longest() {
			return DropOversize
		}
		return to.put(&f.hdr, f.head, f.body, f.n)
	}
	if f.n > to.longest() {
		return DropOversize
	}
	if f.hdr.Flags&virtionet.NeedsCsum != 0 && takes&virtionet.FeatureGuestCsum == 0 {
		return s.complete(f, to)
	}
	return to.put(&f.hdr, f.head, f.body, f.n)
}

func takesGSO(kind byte, takes uint64) bool {
	need := virtionet.FeatureGuestCsum
	if kind&^virtionet.GSOECN == virtionet.GSOTCPv4 {
		need |= virtionet.FeatureGuestTSO4
	} else {
		need |= virtionet.FeatureGuestTSO6
	}
	if kind&virtionet.GSOECN != 0 {
		need |= virtionet.FeatureGuestECN
	}
	return takes&need == need
}

// complete computes the checksum that f's header asks for, and delivers a copy of f that holds it.
func (s *Switch) complete(f *frame, to sink) Reason {
	var c sum
	start := int(f.hdr.CsumStart)
	c.add(f.head[start:])
	for _, b := range f.body {
		c.add(b)
	}
	head := s.head[:copy(s.head[:], f.head)]
	putChecksum(head[start+int(f.hdr.CsumOffset):], ^c.value(), f.proto)
	return to.put(&virtionet.Header{}, head, f.body, f.n)
}

// putChecksum writes a checksum. UDP says 0xffff where the sum is 0 (RFC 768).
func putChecksum(b []byte, v uint16, proto byte) {
	if v == 0 && proto == protoUDP {
		v = 0xffff
	}
	binary.BigEndian.PutUint16(b, v)
}

// Places in headers.
const (
	tcpSeq   = 4
	tcpFlags = 13
	tcpCsum  = 16
	finPush  = 0x01 | 0x08
	cwr      = 0x80
)

// segment cuts a large TCP frame into frames that the sink takes one by one (virtio 1.2 §5.1.6.2). When it returns
// something other than Delivered, some of the segments may have been delivered.
func (s *Switch) segment(f *frame, to sink, takes uint64) Reason {
	hlen, mss := int(f.hdr.HdrLen), int(f.hdr.GSOSize)
	payload := f.n - hlen
	if hlen+mss > to.longest() {
		return DropOversize
	}
	if (payload+mss-1)/mss > maxSegments {
		return DropOffload
	}
	// All that follows the headers: what of it was copied with the head, and the body.
	rest := append(s.rest[:0], f.head[hlen:])
	if len(rest[0]) == 0 {
		rest = rest[:0]
	}
	rest = append(rest, f.body...)
	s.rest = rest[:0]
	head := s.head[:copy(s.head[:], f.head[:hlen])]
	l3, l4 := f.l3, f.l4
	seq := binary.BigEndian.Uint32(head[l4+tcpSeq:])
	flags := head[l4+tcpFlags]
	id := binary.BigEndian.Uint16(head[l3+4:])
	partial := takes&virtionet.FeatureGuestCsum != 0
	for i, off := 0, 0; off < payload; i++ {
		n := min(mss, payload-off)
		last := off+n == payload
		if f.ether == etherIPv4 {
			binary.BigEndian.PutUint16(head[l3+2:], uint16(hlen-l3+n))
			binary.BigEndian.PutUint16(head[l3+4:], id+uint16(i))
			binary.BigEndian.PutUint16(head[l3+10:], 0)
			binary.BigEndian.PutUint16(head[l3+10:], checksum(head[l3:l4]))
		} else {
			binary.BigEndian.PutUint16(head[l3+4:], uint16(hlen-l3-40+n))
		}
		binary.BigEndian.PutUint32(head[l4+tcpSeq:], seq+uint32(off))
		fl := flags
		if !last {
			fl &^= finPush
		}
		if i > 0 {
			fl &^= cwr
		}
		head[l4+tcpFlags] = fl
		s.piece, rest = ring.Cut(s.piece[:0], rest, uint32(n))
		var h virtionet.Header
		var c sum
		c.pseudo(head[l3:], protoTCP, hlen-l4+n)
		if partial {
			h = virtionet.Header{Flags: virtionet.NeedsCsum, CsumStart: uint16(l4), CsumOffset: tcpCsum}
			binary.BigEndian.PutUint16(head[l4+tcpCsum:], c.value())
		} else {
			binary.BigEndian.PutUint16(head[l4+tcpCsum:], 0)
			c.add(head[l4:])
			for _, b := range s.piece {
				c.add(b)
			}
			binary.BigEndian.PutUint16(head[l4+tcpCsum:], ^c.value())
		}
		if r := to.put(&h, head, s.piece, hlen+n); r != Delivered {
			return r
		}
		off += n
	}
	return Delivered
}
