package api

import (
	"fmt"
	"os"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/place"
)

// Role says what a descriptor of a Handover is.
type Role string

// The roles.
const (
	RoleStdin   Role = "stdin"
	RoleStdout  Role = "stdout"
	RoleStderr  Role = "stderr"
	RoleProgram Role = "program" // a static ELF
	RoleFiles   Role = "files"   // an uncompressed tar archive
)

// Handover lists the descriptors that come beside it, in order.
type Handover struct {
	Roles []Role `json:"roles"`
}

// Ticket answers a Handover. It is good for one request, and until the connection that it came over is closed.
type Ticket struct {
	Ticket string `json:"ticket"`
	Error  string `json:"error,omitempty"`
}

// HandOver gives copies of files to the graild whose descriptor socket is at path and returns the ticket that
// stands for them. release takes back what no request has claimed; it must be called.
func HandOver(path string, files map[Role]*os.File) (ticket string, release func(), err error) {
	var conn *hv.Conn
	err = place.WithSocket(path, func(short string) (err error) {
		conn, err = hv.Dial(short)
		return err
	})
	if err != nil {
		return "", nil, err
	}
	release = func() { conn.Close() }
	var h Handover
	var fds []int
	for role, f := range files {
		h.Roles = append(h.Roles, role)
		fds = append(fds, int(f.Fd()))
	}
	var t Ticket
	if err = conn.Send(h, fds...); err == nil {
		_, err = conn.Receive(&t)
	}
	if err == nil && t.Error != "" {
		err = fmt.Errorf("hand over descriptors: %s", t.Error)
	}
	if err != nil {
		release()
		return "", nil, err
	}
	return t.Ticket, release, nil
}
