package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// conn sends and receives whole messages with their descriptors over a Unix stream socket.
type conn struct {
	*net.UnixConn
	oob []byte
	in  [headerBytes + maxPayload]byte
	out []byte
}

func newConn(c *net.UnixConn) *conn {
	return &conn{UnixConn: c, oob: make([]byte, unix.CmsgSpace(4*MaxRegions))}
}

// receive returns the next message; its payload is valid until the next call, its descriptors belong to the
// caller. After an error no descriptor is left open. Errors: io.EOF when the peer closed between messages,
// ErrMessage, the socket's.
func (c *conn) receive() (message, error) {
	fds, err := c.fill(c.in[:headerBytes], nil)
	if err != nil {
		return message{}, err
	}
	m, size, err := decodeHeader(c.in[:headerBytes])
	m.fds = fds
	if err == nil && size > 0 {
		m.payload = c.in[headerBytes : headerBytes+size]
		m.fds, err = c.fill(m.payload, fds)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return message{}, err
		}
	}
	if err != nil {
		closeFDs(m.fds)
		return message{}, err
	}
	return m, nil
}

// fill reads len(b) bytes, and adds descriptors that come with them to fds. On an error it closes them all.
func (c *conn) fill(b []byte, fds []int) ([]int, error) {
	for got := 0; got < len(b); {
		n, oobn, flags, _, err := c.ReadMsgUnix(b[got:], c.oob)
		if oobn > 0 {
			more, perr := rights(c.oob[:oobn])
			fds = append(fds, more...)
			if perr != nil && err == nil {
				err = perr
			}
		}
		switch {
		case errors.Is(err, io.EOF) && got > 0:
			err = io.ErrUnexpectedEOF
		case err != nil:
		case flags&unix.MSG_CTRUNC != 0 || len(fds) > MaxRegions:
			err = fmt.Errorf("%w: more than %d descriptors", ErrMessage, MaxRegions)
		case n == 0:
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			closeFDs(fds)
			return nil, err
		}
		got += n
	}
	return fds, nil
}

// rights returns the descriptors in a control buffer; also those before the place where it is malformed.
func rights(oob []byte) ([]int, error) {
	var fds []int
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: control data: %v", ErrMessage, err)
	}
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		some, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return fds, fmt.Errorf("%w: control data: %v", ErrMessage, err)
		}
		fds = append(fds, some...)
	}
	return fds, nil
}

// send writes m whole. Its descriptors stay the caller's.
func (c *conn) send(m *message) error {
	c.out = m.encode(c.out[:0])
	var oob []byte
	if len(m.fds) > 0 {
		oob = unix.UnixRights(m.fds...)
	}
	n, _, err := c.WriteMsgUnix(c.out, oob, nil)
	for err == nil && n < len(c.out) {
		var k int
		k, err = c.Write(c.out[n:])
		n += k
	}
	if err != nil {
		return fmt.Errorf("vhostuser: send %v: %w", m.req, err)
	}
	return nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
