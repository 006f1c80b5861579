package ring

import "fmt"

// Feature bits that concern the queue itself (virtio 1.2 §6 Reserved Feature Bits). Queue.Features takes the
// whole negotiated set and ignores the rest.
const (
	FeatureIndirect uint64 = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx uint64 = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1 uint64 = 1 << 32 // VIRTIO_F_VERSION_1
)

// MaxSize is the largest queue size (virtio 1.2 §2.7 Split Virtqueues).
const MaxSize = 1 << 15

// Alignments that the specification asks of the three parts (virtio 1.2 §2.7).
const (
	descAlign  = 16
	availAlign = 2
	usedAlign  = 4
)

// layoutAlign keeps what the driver writes and what the device writes on different cache lines, and adjacent
// queues apart, also where the prefetcher fetches lines in pairs.
const layoutAlign = 128

// Queue says where a queue's three parts are, in the peer's addresses, and which features it uses.
type Queue struct {
	Size     uint16 // descriptors: a power of two, 1..MaxSize
	Desc     uint64 // descriptor table, 16-byte aligned, DescBytes(Size) long
	Avail    uint64 // available ring, 2-byte aligned, AvailBytes(Size) long
	Used     uint64 // used ring, 4-byte aligned, UsedBytes(Size) long
	Features uint64 // negotiated feature bits
}

// DescBytes returns the length of a descriptor table (virtio 1.2 §2.7.5).
func DescBytes(size uint16) uint32 { return descLen * uint32(size) }

// AvailBytes returns the length of an available ring with its used_event field (virtio 1.2 §2.7.6).
func AvailBytes(size uint16) uint32 { return 6 + 2*uint32(size) }

// UsedBytes returns the length of a used ring with its avail_event field (virtio 1.2 §2.7.8).
func UsedBytes(size uint16) uint32 { return 6 + 8*uint32(size) }

// Layout is one way to place a queue's parts in Bytes contiguous bytes: driver-written and device-written
// parts share no cache line. Offsets are relative to a base that is a multiple of 16, better of 128.
type Layout struct {
	Size              uint16
	Desc, Avail, Used uint64 // offsets
	Bytes             uint64 // total, a multiple of 128
}

// LayoutOf returns the layout for a queue of size descriptors. Errors: ErrConfig when size is not a power of
// two between 1 and MaxSize.
func LayoutOf(size uint16) (Layout, error) {
	if !validSize(size) {
		return Layout{}, fmt.Errorf("%w: queue size %d is not a power of two in 1..%d", ErrConfig, size, MaxSize)
	}
	l := Layout{Size: size}
	l.Avail = roundUp(uint64(DescBytes(size)), layoutAlign)
	l.Used = roundUp(l.Avail+uint64(AvailBytes(size)), layoutAlign)
	l.Bytes = roundUp(l.Used+uint64(UsedBytes(size)), layoutAlign)
	return l, nil
}

// At returns the queue placed at address base. N queues fit at base, base+l.Bytes, base+2*l.Bytes, ….
func (l Layout) At(base, features uint64) Queue {
	return Queue{Size: l.Size, Desc: base + l.Desc, Avail: base + l.Avail, Used: base + l.Used, Features: features}
}

func validSize(size uint16) bool { return size != 0 && size <= MaxSize && size&(size-1) == 0 }

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// parts returns the memory of q's three parts, with length and alignment checked in the peer's addresses and
// in ours. Errors: ErrConfig, ErrRange.
func (q Queue) parts(m *Memory) (desc, avail, used []byte, err error) {
	if !validSize(q.Size) {
		return nil, nil, nil, fmt.Errorf("%w: queue size %d is not a power of two in 1..%d", ErrConfig, q.Size, MaxSize)
	}
	part := func(name string, addr uint64, length uint32, align uint64) []byte {
		if err != nil {
			return nil
		}
		b, e := m.Slice(addr, length)
		switch {
		case e != nil:
			err = fmt.Errorf("%s at %#x, %d bytes: %w", name, addr, length, e)
		case addr%align != 0 || !aligned(b, uintptr(align)):
			err = fmt.Errorf("%w: %s at %#x is not aligned to %d bytes", ErrConfig, name, addr, align)
		}
		return b
	}
	desc = part("descriptor table", q.Desc, DescBytes(q.Size), descAlign)
	avail = part("available ring", q.Avail, AvailBytes(q.Size), availAlign)
	used = part("used ring", q.Used, UsedBytes(q.Size), usedAlign)
	if err != nil {
		return nil, nil, nil, err
	}
	return desc, avail, used, nil
}
