package guest

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
)

// ErrChannelClosed reports that the host's end of the control channel is gone.
var ErrChannelClosed = errors.New("guest: control channel closed")

// Channel is a driver's control channel. Receive belongs to one goroutine; Send may be called from any.
type Channel struct {
	fd  int
	buf []byte
}

// OpenChannel returns the driver's control channel. Errors: ErrOutside; a VM that is no driver has none.
func OpenChannel() (*Channel, error) {
	caps, err := Caps()
	if err != nil {
		return nil, err
	}
	c, ok := find(caps, abi.CapControl, "")
	if !ok {
		return nil, errors.New("guest: no control channel: this VM is not a driver")
	}
	return NewChannel(int(c.FD)), nil
}

// NewChannel returns the channel behind fd, of which one read or write moves one message.
func NewChannel(fd int) *Channel { return &Channel{fd: fd, buf: make([]byte, abi.MaxMessage)} }

// FD returns the descriptor, to wait on with a ring.Poller.
func (c *Channel) FD() int { return c.fd }

// Receive returns the next message and blocks until there is one. Errors: ErrChannelClosed; a message that
// cannot be decoded is an error and is consumed.
func (c *Channel) Receive() (abi.Message, error) {
	var m abi.Message
	for {
		n, err := unix.Read(c.fd, c.buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			if err := c.wait(unix.POLLIN); err != nil {
				return m, err
			}
			continue
		case err != nil:
			return m, fmt.Errorf("guest: control channel: %w", err)
		case n == 0:
			return m, ErrChannelClosed
		}
		if err := json.Unmarshal(c.buf[:n], &m); err != nil {
			return m, fmt.Errorf("guest: control message: %w", err)
		}
		return m, nil
	}
}

// Send sends one message. Errors: a message above abi.MaxMessage bytes; those of write(2).
func (c *Channel) Send(m abi.Message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("guest: control message: %w", err)
	}
	if len(b) > abi.MaxMessage {
		return fmt.Errorf("guest: control message of %d bytes is too large", len(b))
	}
	for {
		_, err = unix.Write(c.fd, b)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			if err := c.wait(unix.POLLOUT); err != nil {
				return err
			}
		default:
			return fmt.Errorf("guest: control channel: %w", err)
		}
	}
}

func (c *Channel) wait(event int16) error {
	p := []unix.PollFd{{Fd: int32(c.fd), Events: event}}
	if _, err := unix.Poll(p, -1); err != nil && err != unix.EINTR {
		return fmt.Errorf("guest: control channel: %w", err)
	}
	return nil
}
