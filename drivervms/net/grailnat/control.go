package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/drivervms/net/usernet"
	"github.com/grailos/grail/hv"
)

// control answers graild.
type control struct {
	spec    net.NATSpec
	nat     *usernet.NAT
	missing []string // of the jail
}

// serve answers one connection's requests.
func (c *control) serve(conn *hv.Conn) {
	for {
		var req net.NATRequest
		fds, err := conn.Receive(&req)
		if err != nil {
			closeFDs(fds)
			return
		}
		r, send, err := c.answer(req, fds)
		if err != nil {
			r.Error = err.Error()
		}
		err = conn.Send(r, send...)
		if req.Op == net.NATFetch {
			closeFDs(send)
		}
		if err != nil {
			return
		}
	}
}

// answer does what is asked for. It takes over fds.
func (c *control) answer(req net.NATRequest, fds []int) (r net.NATResponse, send []int, err error) {
	if req.Op == net.NATPublish {
		if len(fds) != 1 {
			closeFDs(fds)
			return r, nil, fmt.Errorf("a port is published with one socket, not %d", len(fds))
		}
		socket := os.NewFile(uintptr(fds[0]), req.Publication.ID)
		if err := c.nat.Publish(req.Publication, socket); err != nil {
			socket.Close()
			return r, nil, err
		}
		return r, nil, nil
	}
	closeFDs(fds)
	switch req.Op {
	case net.NATStatus:
		s := c.nat.State()
		s.Missing = append(s.Missing, c.missing...)
		r.State = &s
	case net.NATEnds:
		if c.spec.Stack < 0 || c.spec.Near < 0 {
			return r, nil, fmt.Errorf("there is no uplink")
		}
		send = []int{c.spec.Near, c.spec.Stack}
	case net.NATWithdraw:
		c.nat.Withdraw(req.Publication.ID)
	case net.NATFetch:
		fd, err := c.nat.Socket(req.Publication.ID)
		if err != nil {
			return r, nil, err
		}
		send = []int{fd}
	case net.NATResolve:
		c.nat.SetResolvers(req.Resolvers)
	default:
		err = fmt.Errorf("unknown request %q", req.Op)
	}
	return r, send, err
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
