package ringtest

import (
	"encoding/binary"
	"fmt"

	"github.com/grailos/grail/ring"
)

// Descriptor flags (virtio 1.2 §2.7.5).
const (
	FlagNext     uint16 = 1
	FlagWrite    uint16 = 2
	FlagIndirect uint16 = 4
)

// Desc is one entry of a descriptor table.
type Desc struct {
	Addr        uint64
	Len         uint32
	Flags, Next uint16
}

// Raw reads and writes a queue's fields without any rule: the hands of a peer, honest or not. It is written
// from the specification's tables and shares no code with package ring. It uses plain loads and stores, so a
// concurrent peer needs its own synchronisation.
type Raw struct {
	Q                 ring.Queue
	Mem               *ring.Memory
	desc, avail, used []byte
}

// NewRaw returns the fields of q in m. It panics when q does not lie in m.
func NewRaw(m *ring.Memory, q ring.Queue) *Raw {
	part := func(addr uint64, n int) []byte {
		b, err := m.Slice(addr, uint32(n))
		if err != nil {
			panic(fmt.Sprintf("ringtest: queue part at %#x: %v", addr, err))
		}
		return b
	}
	n := int(q.Size)
	return &Raw{Q: q, Mem: m, desc: part(q.Desc, 16*n), avail: part(q.Avail, 6+2*n), used: part(q.Used, 6+8*n)}
}

var le = binary.LittleEndian

// Desc returns entry i of the descriptor table.
func (r *Raw) Desc(i uint16) Desc { return decodeDesc(r.desc[16*int(i):]) }

// SetDesc writes entry i of the descriptor table.
func (r *Raw) SetDesc(i uint16, d Desc) { encodeDesc(r.desc[16*int(i):], d) }

// SetTable writes an indirect table at address addr.
func (r *Raw) SetTable(addr uint64, ds ...Desc) {
	for i, d := range ds {
		b, err := r.Mem.Slice(addr+16*uint64(i), 16)
		if err != nil {
			panic(fmt.Sprintf("ringtest: indirect table at %#x: %v", addr, err))
		}
		encodeDesc(b, d)
	}
}

func decodeDesc(b []byte) Desc {
	return Desc{Addr: le.Uint64(b), Len: le.Uint32(b[8:]), Flags: le.Uint16(b[12:]), Next: le.Uint16(b[14:])}
}

func encodeDesc(b []byte, d Desc) {
	le.PutUint64(b, d.Addr)
	le.PutUint32(b[8:], d.Len)
	le.PutUint16(b[12:], d.Flags)
	le.PutUint16(b[14:], d.Next)
}

// Fields of the available ring (virtio 1.2 §2.7.6).

func (r *Raw) AvailFlags() uint16        { return le.Uint16(r.avail) }
func (r *Raw) SetAvailFlags(v uint16)    { le.PutUint16(r.avail, v) }
func (r *Raw) AvailIdx() uint16          { return le.Uint16(r.avail[2:]) }
func (r *Raw) SetAvailIdx(v uint16)      { le.PutUint16(r.avail[2:], v) }
func (r *Raw) Avail(idx uint16) uint16   { return le.Uint16(r.avail[4+2*int(idx%r.Q.Size):]) }
func (r *Raw) SetAvail(idx, head uint16) { le.PutUint16(r.avail[4+2*int(idx%r.Q.Size):], head) }
func (r *Raw) UsedEvent() uint16         { return le.Uint16(r.avail[4+2*int(r.Q.Size):]) }
func (r *Raw) SetUsedEvent(v uint16)     { le.PutUint16(r.avail[4+2*int(r.Q.Size):], v) }

// Fields of the used ring (virtio 1.2 §2.7.8).

func (r *Raw) UsedFlags() uint16      { return le.Uint16(r.used) }
func (r *Raw) SetUsedFlags(v uint16)  { le.PutUint16(r.used, v) }
func (r *Raw) UsedIdx() uint16        { return le.Uint16(r.used[2:]) }
func (r *Raw) SetUsedIdx(v uint16)    { le.PutUint16(r.used[2:], v) }
func (r *Raw) AvailEvent() uint16     { return le.Uint16(r.used[4+8*int(r.Q.Size):]) }
func (r *Raw) SetAvailEvent(v uint16) { le.PutUint16(r.used[4+8*int(r.Q.Size):], v) }

// Used returns the used element at index idx.
func (r *Raw) Used(idx uint16) (id, length uint32) {
	e := r.used[4+8*int(idx%r.Q.Size):]
	return le.Uint32(e), le.Uint32(e[4:])
}

// SetUsed writes the used element at index idx.
func (r *Raw) SetUsed(idx uint16, id, length uint32) {
	e := r.used[4+8*int(idx%r.Q.Size):]
	le.PutUint32(e, id)
	le.PutUint32(e[4:], length)
}
