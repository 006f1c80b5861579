package guest

import (
	"errors"
	"fmt"

	"github.com/grailos/grail/ring/virtioblk"
)

// Errors of a disk.
var (
	// ErrDevice reports that the host's device failed: the driver answered with an I/O error.
	ErrDevice = errors.New("device error")

	// ErrUnaligned reports a write, discard or write-zeroes whose offset or length is no multiple of the
	// disk's block size. Reads need no alignment.
	ErrUnaligned = errors.New("offset and length must be multiples of the block size")

	// ErrReadOnly reports a change asked of a disk that was granted read-only.
	ErrReadOnly = errors.New("disk is read-only")

	// ErrBounds reports a range that is not wholly on the disk.
	ErrBounds = errors.New("range reaches beyond the end of the disk")

	// ErrTicket reports a Ticket that was waited for before.
	ErrTicket = errors.New("guest: ticket was used before")

	errShort = errors.New("driver reported fewer bytes than requested")
)

// RequestError is a request that was refused or failed. Err is one of this package's errors, or
// errors.ErrUnsupported.
type RequestError struct {
	Kind   uint32 // virtio-blk request type
	Offset int64  // bytes
	Bytes  uint32
	Err    error
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("guest: %s of %d bytes at %d: %v", kindName(e.Kind), e.Bytes, e.Offset, e.Err)
}

func (e *RequestError) Unwrap() error { return e.Err }

func kindName(kind uint32) string {
	switch kind {
	case virtioblk.TypeIn:
		return "read"
	case virtioblk.TypeOut:
		return "write"
	case virtioblk.TypeFlush:
		return "flush"
	case virtioblk.TypeGetID:
		return "get-id"
	case virtioblk.TypeDiscard:
		return "discard"
	case virtioblk.TypeWriteZeroes:
		return "write-zeroes"
	}
	return fmt.Sprintf("request type %d", kind)
}
