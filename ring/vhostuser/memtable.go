package vhostuser

import (
	"fmt"
	"math"

	"github.com/grailos/grail/ring"
	"golang.org/x/sys/unix"
)

// MemRegion is a piece of the front end's memory.
type MemRegion struct {
	FD     int    // what to map
	Offset uint64 // where the region starts in FD, bytes
	Size   uint64 // bytes
	GPA    uint64 // guest-physical address: what descriptors name
	User   uint64 // front end's own address: what SET_VRING_ADDR names

	// Sealed reports that FD is a memfd that can no longer shrink. Where it is false, the front end can
	// make accesses to the mapping fault (SIGBUS) at any time. Set by Backend, ignored by Frontend.
	Sealed bool
}

// memTable is a checked set of regions: none empty or wrapping, none overlapping another in either space.
type memTable []MemRegion

// overlap reports whether [a, a+an) and [b, b+bn) meet. Neither wraps.
func overlap(a, an, b, bn uint64) bool { return a-b < bn || b-a < an }

// with returns the table with r added. Errors: ErrMessage.
func (t memTable) with(r MemRegion) (memTable, error) {
	if r.Size == 0 || r.Size > math.MaxInt64 || r.Offset > math.MaxInt64-r.Size || r.GPA+(r.Size-1) < r.GPA || r.User+(r.Size-1) < r.User {
		return nil, fmt.Errorf("%w: region of %#x bytes at %#x/%#x, offset %#x", ErrMessage, r.Size, r.GPA, r.User, r.Offset)
	}
	for _, o := range t {
		if overlap(r.GPA, r.Size, o.GPA, o.Size) || overlap(r.User, r.Size, o.User, o.Size) {
			return nil, fmt.Errorf("%w: regions at %#x/%#x and %#x/%#x overlap", ErrMessage, r.GPA, r.User, o.GPA, o.User)
		}
	}
	return append(t[:len(t):len(t)], r), nil
}

// gpa translates length bytes at a user address. Errors: ErrMessage.
func (t memTable) gpa(user uint64, length uint32) (uint64, error) {
	for _, r := range t {
		if off := user - r.User; off < r.Size && uint64(length) <= r.Size-off {
			return r.GPA + off, nil
		}
	}
	return 0, fmt.Errorf("%w: no region holds %d bytes at user address %#x", ErrMessage, length, user)
}

// user translates a guest-physical address to a user address. Errors: ErrMessage.
func (t memTable) user(gpa uint64) (uint64, error) {
	for _, r := range t {
		if off := gpa - r.GPA; off < r.Size {
			return r.User + off, nil
		}
	}
	return 0, fmt.Errorf("%w: no region holds address %#x", ErrMessage, gpa)
}

// queue translates a queue's addresses. Errors: ErrMessage.
func (t memTable) queue(a vringAddr, size uint16) (q ring.Queue, err error) {
	q.Size = size
	if q.Desc, err = t.gpa(a.desc, ring.DescBytes(size)); err != nil {
		return q, err
	}
	if q.Avail, err = t.gpa(a.avail, ring.AvailBytes(size)); err != nil {
		return q, err
	}
	q.Used, err = t.gpa(a.used, ring.UsedBytes(size))
	return q, err
}

// checkBacking checks that fd really has size bytes from offset, and reports whether it is sealed against
// shrinking. Errors: ErrMessage.
func checkBacking(fd int, offset, size uint64) (sealed bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("%w: descriptor: %v", ErrMessage, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size < 0 || offset > uint64(st.Size) || size > uint64(st.Size)-offset {
		return false, fmt.Errorf("%w: descriptor of mode %#o with %d bytes cannot back [%#x, +%#x)", ErrMessage, st.Mode, st.Size, offset, size)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	return err == nil && seals&unix.F_SEAL_SHRINK != 0, nil
}
