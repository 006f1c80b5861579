package hv

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A portal (hv/grailport) is a process that owns a driver's vhost-user sockets. It speaks the protocol's control
// plane with the clients and turns each queue that a client starts into an Attachment for the driver VM. It
// takes no part in the data path, and lives on when the driver VM dies, so that the client's connection does
// too.
//
// The portal states what it wants and graild brings it about:
//
//	s, _ := p.Wait(seq)                  // again and again; the answer comes when something has changed
//	for each attachment of s.Attachments:
//	    wanted, not attached yet:  a, fds, _ := p.Fetch(id); attach a to the driver VM; p.Attached(id, err)
//	    leaving:                   detach id from the driver VM, if it was attached; p.Detached(id)
//	for each attached one that s does not list: detach it (the portal was replaced)
//
// Every step may be repeated. When the driver VM is replaced, graild attaches all that it has fetched again;
// the portal need not know. A graild that starts anew begins with Wait(0), compares with the driver's
// Status.Attached, and fetches everything. While no graild runs, clients wait: new ones for their first
// completion, leaving ones for the answer to GET_VRING_BASE.

// PortalSpec says what a portal serves. It is JSON in a sealed memfd on descriptor SpecFD; descriptor fields
// are numbers in the new process.
type PortalSpec struct {
	Driver  string         `json:"driver"`  // name of the driver VM
	Control int            `json:"control"` // a listening SOCK_SEQPACKET socket
	FirstID uint64         `json:"firstID"` // attachments are numbered from here on; graild leaves PortalIDs free
	Devices []PortalDevice `json:"devices"`
	// AllowUnsealed admits clients whose memory is in files that they can truncate (no F_SEAL_SHRINK). Such
	// a client can make the driver VM fail, again and again.
	AllowUnsealed bool `json:"allowUnsealed"`
}

// PortalIDs is how many attachment IDs a portal may use in its life.
const PortalIDs = 1 << 32

// MaxPortalQueues is how many queues the clients of a portal may have attached at once. Those that the network
// cards of a portal offer are set aside for them, so that their sum is at most this.
const MaxPortalQueues = 256

// PortalKind is the kind of a device that a portal offers.
type PortalKind string

// The kinds of devices.
const (
	// PortalBlk is a disk. Any number of clients may share it. Queues have an in-flight log.
	PortalBlk PortalKind = "blk"
	// PortalNet is a network card. It has one client at a time; the next one waits a little for the last one's
	// queues to be detached. Queues have no in-flight log, since frames may be lost: a queue goes on from its used
	// index. Every queue is an attachment of its own, and its driver VM joins those with the same Config.
	PortalNet PortalKind = "net"
)

// PortalDevice is one device that a portal offers.
type PortalDevice struct {
	Kind     PortalKind `json:"kind,omitempty"` // empty: PortalBlk
	Name     string     `json:"name"`           // of the disk or port; becomes Attachment.Disk
	Listen   int        `json:"listen"`         // a listening SOCK_STREAM Unix socket
	ReadOnly bool       `json:"readonly,omitempty"`
	Features uint64     `json:"features"` // virtio features offered: blk.Device.Features, net.Port.Features
	Space    []byte     `json:"space"`    // configuration space: struct virtio_blk_config or virtio_net_config
	// Queues is the number of virtqueues. A PortalNet has two a pair, receive before transmit; a client that does
	// not negotiate the vhost-user protocol's MQ has the first pair alone, without VIRTIO_NET_F_MQ.
	Queues int    `json:"queues"`
	Config string `json:"config,omitempty"` // becomes Attachment.Config; the portal does not look inside
}

// PortalOp is a request on a portal's control socket.
type PortalOp string

// The operations.
const (
	PortalWait     PortalOp = "wait"     // answers PortalState once its Seq differs from Since
	PortalFetch    PortalOp = "fetch"    // ID; answers the Attachment with its descriptors
	PortalAttached PortalOp = "attached" // ID; the driver serves it, or Error says why not: the client is disconnected and the attachment leaves
	PortalDetached PortalOp = "detached" // ID; the driver no longer serves it, and nothing of it is in flight
)

// PortalRequest is one request on a portal's control socket. Several connections may be open; each is
// answered in order.
type PortalRequest struct {
	Op    PortalOp `json:"op"`
	Since uint64   `json:"since,omitempty"`
	ID    uint64   `json:"id,omitempty"`
	Error string   `json:"error,omitempty"`
}

// PortalResponse answers one PortalRequest. Error is empty on success.
type PortalResponse struct {
	Error      string       `json:"error,omitempty"`
	State      *PortalState `json:"state,omitempty"`
	Attachment *Attachment  `json:"attachment,omitempty"`
}

// PortalState is what a portal wants.
type PortalState struct {
	Seq         uint64             `json:"seq"` // changes with every change of the rest; never 0
	Attachments []PortalAttachment `json:"attachments"`
	Clients     int                `json:"clients"` // connections
	// Errors holds the reasons why the last clients were disconnected, the newest last.
	Errors []string `json:"errors,omitempty"`
}

// PortalAttachment is one queue of one client.
type PortalAttachment struct {
	ID      uint64 `json:"id"`
	Client  string `json:"client"`
	Disk    string `json:"disk"`    // PortalDevice.Name
	Leaving bool   `json:"leaving"` // to be detached; otherwise to be attached
}

// ErrPortal is wrapped by a request that the portal refused: the attachment is gone, for instance.
var ErrPortal = errors.New("hv: portal refused")

// Portal is graild's end of a portal's control connection. It is not safe for concurrent use; use one
// connection for Wait and another for the rest.
type Portal struct{ *Conn }

// Wait returns the portal's state once it differs from that with number since; 0 asks for it at once. See
// Conn.SetTimeout: a time-out is unix.EAGAIN, after which the connection is to be closed. Errors: ErrClosed.
func (p Portal) Wait(since uint64) (PortalState, error) {
	r, fds, err := p.call(PortalRequest{Op: PortalWait, Since: since})
	closeAll(fds)
	if err == nil && r.State == nil {
		err = fmt.Errorf("%w: no state in the answer", ErrPortal)
	}
	if err != nil {
		return PortalState{}, err
	}
	return *r.State, nil
}

// Fetch returns attachment id. Its descriptor fields index fds, which are the caller's to close, and may be
// used to attach it any number of times. Errors: ErrPortal, ErrClosed.
func (p Portal) Fetch(id uint64) (a Attachment, fds []int, err error) {
	r, fds, err := p.call(PortalRequest{Op: PortalFetch, ID: id})
	if err == nil && r.Attachment == nil {
		err = fmt.Errorf("%w: no attachment in the answer", ErrPortal)
	}
	if err != nil {
		closeAll(fds)
		return a, nil, err
	}
	a = *r.Attachment
	bad := false
	a.Descriptors(func(fd *int) { bad = bad || *fd >= len(fds) })
	if bad {
		closeAll(fds)
		return a, nil, fmt.Errorf("%w: attachment names descriptors that did not come", ErrPortal)
	}
	return a, fds, nil
}

// Attached says that the driver serves id. With a failure it says that the driver does not, or no longer
// should (the client broke its ring's rules): the portal disconnects the client, and its attachments leave.
// Errors: ErrPortal, ErrClosed.
func (p Portal) Attached(id uint64, failure error) error {
	r := PortalRequest{Op: PortalAttached, ID: id}
	if failure != nil {
		r.Error = failure.Error()
	}
	_, fds, err := p.call(r)
	closeAll(fds)
	return err
}

// Detached says that the driver does not serve id and has nothing of it in flight. Errors: ErrClosed.
func (p Portal) Detached(id uint64) error {
	_, fds, err := p.call(PortalRequest{Op: PortalDetached, ID: id})
	closeAll(fds)
	return err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func (p Portal) call(req PortalRequest) (r PortalResponse, fds []int, err error) {
	if err := p.Send(req); err != nil {
		return r, nil, err
	}
	fds, err = p.Receive(&r)
	if err == nil && r.Error != "" {
		err = fmt.Errorf("%w: %s %d: %s", ErrPortal, req.Op, req.ID, r.Error)
	}
	return r, fds, err
}
