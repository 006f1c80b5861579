package ring

import "encoding/binary"

// Descriptor format (virtio 1.2 §2.7.5 The Virtqueue Descriptor Table).
const (
	descLen = 16

	descNext     uint16 = 1 // VIRTQ_DESC_F_NEXT
	descWrite    uint16 = 2 // VIRTQ_DESC_F_WRITE
	descIndirect uint16 = 4 // VIRTQ_DESC_F_INDIRECT
)

// Offsets in the available and used rings, which share their head: flags, idx, ring[size], event
// (virtio 1.2 §2.7.6, §2.7.8).
const (
	offFlags = 0
	offIdx   = 2
	offRing  = 4

	availNoInterrupt uint16 = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	usedNoNotify     uint16 = 1 // VIRTQ_USED_F_NO_NOTIFY
)

// descriptor is a private copy of one table entry.
type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// loadDesc copies entry i of table, each field loaded once. The caller has bounded i.
func loadDesc(table []byte, i uint32) descriptor {
	e := table[uint64(i)*descLen:][:descLen]
	tail := binary.LittleEndian.Uint64(e[8:])
	return descriptor{
		addr:  binary.LittleEndian.Uint64(e),
		len:   uint32(tail),
		flags: uint16(tail >> 32),
		next:  uint16(tail >> 48),
	}
}

// storeDesc writes entry i of table. The caller has bounded i.
func storeDesc(table []byte, i uint32, d descriptor) {
	e := table[uint64(i)*descLen:][:descLen]
	binary.LittleEndian.PutUint64(e, d.addr)
	binary.LittleEndian.PutUint64(e[8:], uint64(d.len)|uint64(d.flags)<<32|uint64(d.next)<<48)
}

// needEvent reports whether moving an index from old to new passes event, all modulo 2^16
// (virtio 1.2 §2.7.7.2 and §2.7.10: vring_need_event).
func needEvent(event, new, old uint16) bool { return new-event-1 < new-old }
