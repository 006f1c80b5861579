package guest

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
)

// MapGrant maps size bytes of the capability fd from byte offset on, shared with whoever granted them. The
// mapping stays valid when the grant is revoked; it then reads as zeroes. Errors: those of mmap(2).
func MapGrant(fd int32, offset, size uint64, write bool) ([]byte, error) {
	if size == 0 || size > math.MaxInt64 || offset > math.MaxInt64-size {
		return nil, fmt.Errorf("guest: map of %d bytes at %d: %w", size, offset, unix.EINVAL)
	}
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	b, err := unix.Mmap(int(fd), int64(offset), int(size), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("guest: map %d bytes of capability %d: %w", size, fd, err)
	}
	return b, nil
}

// UnmapGrant undoes MapGrant. Precondition: nothing made from b is used any more.
func UnmapGrant(b []byte) error { return unix.Munmap(b) }

// Memory is the three parts of a grant, page-aligned mappings, as its client has them; see abi.RingsAt.
type Memory struct {
	Rings   []byte
	Used    []byte // read-only
	Buffers []byte
}

// mapMemory maps the grant whose buffers are the capability g.
func mapMemory(caps []abi.Cap, g abi.Cap) (m Memory, err error) {
	rings, ok1 := find(caps, abi.CapRings, g.Name)
	used, ok2 := find(caps, abi.CapUsed, g.Name)
	if !ok1 || !ok2 {
		return m, fmt.Errorf("guest: %s has no rings", g.Name)
	}
	if m.Rings, err = MapGrant(rings.FD, 0, rings.Size, true); err != nil {
		return m, err
	}
	if m.Used, err = MapGrant(used.FD, 0, used.Size, false); err == nil {
		m.Buffers, err = MapGrant(g.FD, 0, g.Size, true)
	}
	return m, err
}

// holds checks that the parts hold so many queues of size descriptors, and returns them as descriptors name them.
func (m *Memory) holds(queues, size uint16) (*ring.Memory, error) {
	if uint64(len(m.Rings)) < abi.RingsBytes(queues, size) || uint64(len(m.Used)) < abi.UsedBytes(queues) {
		return nil, fmt.Errorf("%d queues of %d do not fit %d bytes of rings and %d of used rings", queues, size, len(m.Rings), len(m.Used))
	}
	return m.Regions()
}

// Regions returns the three parts as descriptors name them. Errors: one is empty.
func (m *Memory) Regions() (*ring.Memory, error) {
	return ring.NewMemory(ring.Region{Base: abi.RingsAt, Mem: m.Rings}, ring.Region{Base: abi.UsedAt, Mem: m.Used},
		ring.Region{Base: abi.BuffersAt, Mem: m.Buffers})
}

// Split makes the three parts of b, in this order, for so many queues of size descriptors; the buffers get what is left. It is for those who are
// both sides. Precondition: b is long enough, and page-aligned.
func Split(b []byte, queues, size uint16) Memory {
	used := abi.RingsBytes(queues, size)
	buffers := used + abi.UsedBytes(queues)
	return Memory{Rings: b[:used:used], Used: b[used:buffers:buffers], Buffers: b[buffers:]}
}
