package virtioblk

import (
	"encoding/binary"
	"errors"

	"github.com/grailos/grail/ring"
)

// Request types (virtio 1.2 §5.2.6).
const (
	TypeIn          uint32 = 0  // read
	TypeOut         uint32 = 1  // write
	TypeFlush       uint32 = 4  // make earlier completed writes durable
	TypeGetID       uint32 = 8  // 20 bytes of identification
	TypeDiscard     uint32 = 11 // ranges whose content no longer matters
	TypeWriteZeroes uint32 = 13 // ranges to be zeroed
)

// Status bytes (virtio 1.2 §5.2.6).
const (
	StatusOK          byte = 0
	StatusIOErr       byte = 1
	StatusUnsupported byte = 2
)

// Sizes of the parts of a request, in bytes.
const (
	HeaderBytes = 16
	StatusBytes = 1
	IDBytes     = 20
	RangeBytes  = 16
)

// ErrRequest reports a chain without room for a header or a status: there is no way to answer it, so the
// queue is to be treated as broken.
var ErrRequest = errors.New("virtioblk: chain has no header or no status byte")

// Header starts every request (virtio 1.2 §5.2.6, struct virtio_blk_req).
type Header struct {
	Type   uint32
	Sector uint64 // of 512 bytes; 0 unless Type is TypeIn or TypeOut
}

// Encode writes the wire form of h to the first HeaderBytes of b.
func (h Header) Encode(b []byte) {
	_ = b[HeaderBytes-1]
	binary.LittleEndian.PutUint32(b, h.Type)
	binary.LittleEndian.PutUint32(b[4:], 0)
	binary.LittleEndian.PutUint64(b[8:], h.Sector)
}

// DecodeHeader returns the header in the first HeaderBytes of b.
func DecodeHeader(b []byte) Header {
	_ = b[HeaderBytes-1]
	return Header{Type: binary.LittleEndian.Uint32(b), Sector: binary.LittleEndian.Uint64(b[8:])}
}

// RangeUnmap is the flag of a Range that lets a write-zeroes deallocate.
const RangeUnmap uint32 = 1

// Range is one piece of a discard or write-zeroes request (struct virtio_blk_discard_write_zeroes).
type Range struct {
	Sector uint64
	Count  uint32 // sectors
	Flags  uint32
}

// Encode writes the wire form of r to the first RangeBytes of b.
func (r Range) Encode(b []byte) {
	_ = b[RangeBytes-1]
	binary.LittleEndian.PutUint64(b, r.Sector)
	binary.LittleEndian.PutUint32(b[8:], r.Count)
	binary.LittleEndian.PutUint32(b[12:], r.Flags)
}

// DecodeRange returns the range in the first RangeBytes of b.
func DecodeRange(b []byte) Range {
	_ = b[RangeBytes-1]
	return Range{
		Sector: binary.LittleEndian.Uint64(b),
		Count:  binary.LittleEndian.Uint32(b[8:]), Flags: binary.LittleEndian.Uint32(b[12:]),
	}
}

// Request is a chain taken apart. It shares the chain's memory and is valid as long as the chain is.
type Request struct {
	Header
	Head uint16 // for ring.Device.Push

	// Data is what lies between header and status, in order: writable memory for TypeIn and TypeGetID,
	// readable memory for every other type.
	Data      [][]byte
	DataBytes uint32

	status []byte // one byte
}

// Parse takes c apart without allocating, whatever the division into descriptors (virtio 1.2 §2.7.4 Message
// Framing). It changes c's slices. The header is copied once; type and sector are the peer's and are not
// checked here. Errors: ErrRequest.
func (r *Request) Parse(c *ring.Chain) error {
	var h [HeaderBytes]byte
	if c.ReadAt(h[:], 0) < HeaderBytes || c.WritableBytes < StatusBytes {
		return ErrRequest
	}
	last := c.Writable[len(c.Writable)-1]
	r.Header, r.Head, r.status = DecodeHeader(h[:]), c.Head, last[len(last)-1:]
	if r.Type == TypeIn || r.Type == TypeGetID {
		r.Data, r.DataBytes = ring.DropLast(c.Writable, StatusBytes), c.WritableBytes-StatusBytes
	} else {
		r.Data, r.DataBytes = ring.Drop(c.Readable, HeaderBytes), c.ReadableBytes-HeaderBytes
	}
	return nil
}

// Finish writes the status byte and returns the number of bytes to report to ring.Device.Push: what was
// certainly written, counted from the first writable byte. For StatusOK all of a read's Data counts as filled.
func (r *Request) Finish(status byte) (written uint32) {
	r.status[0] = status
	isRead := r.Type == TypeIn || r.Type == TypeGetID
	switch {
	case !isRead || r.DataBytes == 0:
		return StatusBytes
	case status == StatusOK:
		return r.DataBytes + StatusBytes
	default:
		return 0
	}
}
