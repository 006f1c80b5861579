package virtionet

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// HeaderBytes is the length of the header before each frame, in both directions and with or without
// FeatureMergeable, since FeatureVersion1 is always negotiated (virtio 1.2 §5.1.6).
const HeaderBytes = 12

// Bits of Header.Flags.
const (
	NeedsCsum byte = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum at CsumStart+CsumOffset is to be completed
	DataValid byte = 2 // VIRTIO_NET_HDR_F_DATA_VALID: the checksum was verified; devices only
)

// Values of Header.GSOType.
const (
	GSONone  byte = 0
	GSOTCPv4 byte = 1
	GSOUDP   byte = 3
	GSOTCPv6 byte = 4
	GSOUDPL4 byte = 5
	GSOECN   byte = 0x80 // a bit beside GSOTCPv4 or GSOTCPv6
)

// MaxFrame is the longest frame that a header can stand before, in bytes: the largest IP packet and the Ethernet
// header with one VLAN tag.
const MaxFrame = 65535 + 18

// ErrHeader reports a header that contradicts its frame or the negotiated features. The frame is to be dropped;
// the queue is still good.
var ErrHeader = errors.New("virtionet: invalid header")

// Header is struct virtio_net_hdr_v1 (virtio 1.2 §5.1.6).
type Header struct {
	Flags      byte
	GSOType    byte
	HdrLen     uint16 // a hint: bytes of the headers that each segment repeats
	GSOSize    uint16 // bytes of payload a segment
	CsumStart  uint16 // first byte of the frame that the checksum covers
	CsumOffset uint16 // where it stands, from CsumStart on
	NumBuffers uint16 // chains that the frame takes; from device to driver only
}

// Encode writes the wire form of h to the first HeaderBytes of b.
func (h *Header) Encode(b []byte) {
	_ = b[HeaderBytes-1]
	le := binary.LittleEndian
	b[0], b[1] = h.Flags, h.GSOType
	le.PutUint16(b[2:], h.HdrLen)
	le.PutUint16(b[4:], h.GSOSize)
	le.PutUint16(b[6:], h.CsumStart)
	le.PutUint16(b[8:], h.CsumOffset)
	le.PutUint16(b[10:], h.NumBuffers)
}

// DecodeHeader returns the header in the first HeaderBytes of b, unchecked.
func DecodeHeader(b []byte) Header {
	_ = b[HeaderBytes-1]
	le := binary.LittleEndian
	return Header{
		Flags: b[0], GSOType: b[1], HdrLen: le.Uint16(b[2:]), GSOSize: le.Uint16(b[4:]),
		CsumStart: le.Uint16(b[6:]), CsumOffset: le.Uint16(b[8:]), NumBuffers: le.Uint16(b[10:]),
	}
}

// Check refuses a header that a driver put before a frame of n bytes, after features were negotiated, unless
// every number in it that counts lies in the frame (virtio 1.2 §5.1.6.2 Packet Transmission). It does not look
// into the frame. Errors: ErrHeader, wrapped with what is wrong.
func (h *Header) Check(n int, features uint64) error {
	if *h == (Header{}) || *h == (Header{NumBuffers: h.NumBuffers, HdrLen: h.HdrLen}) {
		return nil
	}
	if n > MaxFrame {
		return fmt.Errorf("%w: before a frame of %d bytes", ErrHeader, n)
	}
	if h.Flags&^(NeedsCsum|DataValid) != 0 {
		return fmt.Errorf("%w: flags %#x", ErrHeader, h.Flags)
	}
	if h.Flags&NeedsCsum != 0 {
		if features&FeatureCsum == 0 {
			return fmt.Errorf("%w: partial checksum without the feature", ErrHeader)
		}
		if int(h.CsumStart)+int(h.CsumOffset)+2 > n {
			return fmt.Errorf("%w: checksum at %d+%d in a frame of %d bytes", ErrHeader, h.CsumStart, h.CsumOffset, n)
		}
	}
	if h.GSOType == GSONone {
		return nil
	}
	need := uint64(0)
	switch h.GSOType &^ GSOECN {
	case GSOTCPv4:
		need = FeatureHostTSO4
	case GSOTCPv6:
		need = FeatureHostTSO6
	default:
		return fmt.Errorf("%w: segmentation type %#x", ErrHeader, h.GSOType)
	}
	if h.GSOType&GSOECN != 0 {
		need |= FeatureHostECN
	}
	switch {
	case features&need != need:
		return fmt.Errorf("%w: segmentation type %#x without the feature", ErrHeader, h.GSOType)
	case h.Flags&NeedsCsum == 0:
		return fmt.Errorf("%w: segmentation without a partial checksum", ErrHeader)
	case h.GSOSize == 0:
		return fmt.Errorf("%w: segments of no payload", ErrHeader)
	}
	return nil
}
