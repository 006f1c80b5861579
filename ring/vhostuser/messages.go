package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMessage reports a message that breaks the protocol: the peer is broken or hostile, the session is over.
var ErrMessage = errors.New("vhostuser: malformed message")

// Header flags (vhost-user protocol, "Header").
const (
	flagVersion     uint32 = 1
	flagVersionMask uint32 = 3
	flagReply       uint32 = 1 << 2
	flagNeedReply   uint32 = 1 << 3
)

const (
	headerBytes     = 12
	u64Bytes        = 8
	stateBytes      = 8
	addrBytes       = 40
	regionBytes     = 32
	memHeadBytes    = 8
	singleRegBytes  = 8 + regionBytes
	configHeadBytes = 12
	inflightBytes   = 24 // QEMU's struct ends in 4 bytes of padding
	inflightMin     = 20

	// maxPayload is the largest payload of any message that this package knows.
	maxPayload = configHeadBytes + MaxConfig
)

// message is one message of either direction. Its descriptors are owned by whoever holds the message.
type message struct {
	req     Request
	flags   uint32
	payload []byte
	fds     []int
}

func (m *message) needReply() bool { return m.flags&flagNeedReply != 0 }

// decodeHeader checks a header and returns the message without its payload, and the payload's length.
// Errors: ErrMessage.
func decodeHeader(b []byte) (message, int, error) {
	_ = b[headerBytes-1]
	le := binary.LittleEndian
	m := message{req: Request(le.Uint32(b)), flags: le.Uint32(b[4:])}
	size := le.Uint32(b[8:])
	if m.flags&flagVersionMask != flagVersion {
		return m, 0, fmt.Errorf("%w: %v has version %d", ErrMessage, m.req, m.flags&flagVersionMask)
	}
	if size > maxPayload {
		return m, 0, fmt.Errorf("%w: %v has %d bytes of payload", ErrMessage, m.req, size)
	}
	return m, int(size), nil
}

// encode appends the wire form of m, without descriptors, to b.
func (m *message) encode(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(m.req))
	b = le.AppendUint32(b, m.flags)
	b = le.AppendUint32(b, uint32(len(m.payload)))
	return append(b, m.payload...)
}

// sized returns the payload if it has exactly n bytes. Errors: ErrMessage.
func (m *message) sized(n int) ([]byte, error) {
	if len(m.payload) != n {
		return nil, fmt.Errorf("%w: %v has %d bytes of payload, want %d", ErrMessage, m.req, len(m.payload), n)
	}
	return m.payload, nil
}

// empty checks that there is no payload.
func (m *message) empty() error {
	_, err := m.sized(0)
	return err
}

func (m *message) u64() (uint64, error) {
	b, err := m.sized(u64Bytes)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

func putU64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// vringState is the payload of the requests that set or get one number of a queue.
type vringState struct{ index, num uint32 }

func (m *message) state() (vringState, error) {
	b, err := m.sized(stateBytes)
	if err != nil {
		return vringState{}, err
	}
	return vringState{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])}, nil
}

func (s vringState) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, s.index)
	return binary.LittleEndian.AppendUint32(b, s.num)
}

// vringAddr is where a queue lies, in the front end's user addresses.
type vringAddr struct {
	index, flags           uint32
	desc, used, avail, log uint64
}

func (m *message) addr() (vringAddr, error) {
	b, err := m.sized(addrBytes)
	if err != nil {
		return vringAddr{}, err
	}
	le := binary.LittleEndian
	return vringAddr{
		index: le.Uint32(b), flags: le.Uint32(b[4:]), desc: le.Uint64(b[8:]),
		used: le.Uint64(b[16:]), avail: le.Uint64(b[24:]), log: le.Uint64(b[32:]),
	}, nil
}

func (a vringAddr) encode() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, a.index)
	b = le.AppendUint32(b, a.flags)
	for _, v := range [...]uint64{a.desc, a.used, a.avail, a.log} {
		b = le.AppendUint64(b, v)
	}
	return b
}

// vringFD is the payload of SET_VRING_KICK, CALL and ERR: a queue, and whether a descriptor comes with it.
type vringFD struct {
	index uint32
	noFD  bool
}

func (m *message) vringFD() (vringFD, error) {
	v, err := m.u64()
	if err != nil {
		return vringFD{}, err
	}
	if v&^0x1ff != 0 {
		return vringFD{}, fmt.Errorf("%w: %v of queue %#x", ErrMessage, m.req, v)
	}
	return vringFD{index: uint32(v & 0xff), noFD: v&0x100 != 0}, nil
}

func (f vringFD) encode() []byte {
	v := uint64(f.index)
	if f.noFD {
		v |= 0x100
	}
	return putU64(v)
}

func decodeRegion(b []byte) MemRegion {
	le := binary.LittleEndian
	return MemRegion{GPA: le.Uint64(b), Size: le.Uint64(b[8:]), User: le.Uint64(b[16:]), Offset: le.Uint64(b[24:]), FD: -1}
}

func (r *MemRegion) encode(b []byte) []byte {
	for _, v := range [...]uint64{r.GPA, r.Size, r.User, r.Offset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// regions returns SET_MEM_TABLE's regions, without descriptors.
func (m *message) regions() ([]MemRegion, error) {
	if len(m.payload) < memHeadBytes {
		return nil, fmt.Errorf("%w: %v has %d bytes of payload", ErrMessage, m.req, len(m.payload))
	}
	n := binary.LittleEndian.Uint32(m.payload)
	if n > MaxRegions || len(m.payload) < memHeadBytes+int(n)*regionBytes {
		return nil, fmt.Errorf("%w: %v of %d regions in %d bytes", ErrMessage, m.req, n, len(m.payload))
	}
	rs := make([]MemRegion, n)
	for i := range rs {
		rs[i] = decodeRegion(m.payload[memHeadBytes+i*regionBytes:])
	}
	return rs, nil
}

func encodeRegions(rs []MemRegion) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(rs)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	for i := range rs {
		b = rs[i].encode(b)
	}
	return b
}

// region returns the single region of ADD_MEM_REG and REM_MEM_REG, without its descriptor.
func (m *message) region() (MemRegion, error) {
	b, err := m.sized(singleRegBytes)
	if err != nil {
		return MemRegion{}, err
	}
	return decodeRegion(b[8:]), nil
}

// configSpace is a piece of the device's configuration space.
type configSpace struct {
	offset, flags uint32
	data          []byte
}

func (m *message) config() (configSpace, error) {
	if len(m.payload) < configHeadBytes {
		return configSpace{}, fmt.Errorf("%w: %v has %d bytes of payload", ErrMessage, m.req, len(m.payload))
	}
	le := binary.LittleEndian
	c := configSpace{offset: le.Uint32(m.payload), flags: le.Uint32(m.payload[8:]), data: m.payload[configHeadBytes:]}
	size := le.Uint32(m.payload[4:])
	if uint64(size) != uint64(len(c.data)) || c.offset > MaxConfig || size > MaxConfig-c.offset {
		return configSpace{}, fmt.Errorf("%w: %v of [%d, +%d) with %d bytes", ErrMessage, m.req, c.offset, size, len(c.data))
	}
	return c, nil
}

func (c configSpace) encode() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, c.offset)
	b = le.AppendUint32(b, uint32(len(c.data)))
	b = le.AppendUint32(b, c.flags)
	return append(b, c.data...)
}

// inflight returns the description of an in-flight log, without its descriptor.
func (m *message) inflight() (InflightArea, error) {
	b := m.payload
	if len(b) != inflightBytes && len(b) != inflightMin {
		return InflightArea{}, fmt.Errorf("%w: %v has %d bytes of payload", ErrMessage, m.req, len(b))
	}
	le := binary.LittleEndian
	return InflightArea{
		FD: -1, Size: le.Uint64(b), Offset: le.Uint64(b[8:]), Queues: le.Uint16(b[16:]), QueueSize: le.Uint16(b[18:]),
	}, nil
}

func (a *InflightArea) encode() []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, a.Size)
	b = le.AppendUint64(b, a.Offset)
	b = le.AppendUint16(b, a.Queues)
	b = le.AppendUint16(b, a.QueueSize)
	return le.AppendUint32(b, 0)
}
