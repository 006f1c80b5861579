package guest

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
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
