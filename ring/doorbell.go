package ring

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Doorbell is a notification with eventfd semantics: rings add up until they are drained. The same code runs
// on the host and in a Grail guest, where a doorbell capability is such a descriptor. It may be rung from
// anywhere, also from several goroutines.
//
// The descriptor must not block. NewDoorbell's does not; one that a peer supplied has to be made so, and be
// known to be an eventfd, before it gets here.
type Doorbell struct{ fd int }

// one is the 8-byte increment that every ring writes.
var one = [8]byte{1}

// NewDoorbell creates an eventfd: non-blocking, close-on-exec, counter 0. The caller closes it.
func NewDoorbell() (Doorbell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return Doorbell{fd: -1}, fmt.Errorf("ring: eventfd: %w", err)
	}
	return Doorbell{fd: fd}, nil
}

// DoorbellOf returns the doorbell on an existing descriptor, which stays the caller's. A negative fd is a
// doorbell that nobody hears: Ring and Drain do nothing.
func DoorbellOf(fd int) Doorbell { return Doorbell{fd: fd} }

// FD returns the descriptor, to be polled for reading or handed over.
func (b Doorbell) FD() int { return b.fd }

// Ring wakes whoever waits on the doorbell. It does not allocate. A doorbell that is already rung to its
// limit stays rung, which is no error.
func (b Doorbell) Ring() error {
	if b.fd < 0 {
		return nil
	}
	for {
		switch err := ringNow(b.fd); err {
		case 0, unix.EAGAIN:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("ring: doorbell: %w", err)
		}
	}
}

// Drain takes back every ring so far and reports whether there was any. It does not block or allocate.
func (b Doorbell) Drain() (rung bool, err error) {
	if b.fd < 0 {
		return false, nil
	}
	for {
		var buf [8]byte
		_, err := unix.Read(b.fd, buf[:])
		switch err {
		case nil:
			return true, nil
		case unix.EAGAIN:
			return false, nil
		case unix.EINTR:
		default:
			return false, fmt.Errorf("ring: doorbell: %w", err)
		}
	}
}

// Close closes the descriptor.
func (b Doorbell) Close() error {
	if b.fd < 0 {
		return nil
	}
	return unix.Close(b.fd)
}
