package net

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring/virtionet"
)

// NATSpec says what a NAT process (drivervms/net/grailnat) does. It is the far end of one switch's uplink: the router of the guests, whose
// connections it carries on through sockets of the host's, and the way to the ports that they publish. It is JSON in a
// sealed memfd on descriptor hv.SpecFD; descriptor fields are numbers in the new process.
type NATSpec struct {
	Driver  string `json:"driver"`
	Control int    `json:"control"` // a listening SOCK_SEQPACKET socket
	// Stack is the far end of NewSocket. With -1 the guests are reached through the host's own network, by a tap, and ports are all
	// that there is to do.
	Stack int `json:"stack"`
	Near  int `json:"near"` // the other end, kept for the next graild
	NATConfig
}

// NATConfig is what a NAT process knows of its network.
type NATConfig struct {
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"` // its own address, in the subnet
	MAC     vswitch.MAC  `json:"mac"`     // its own
	MTU     uint16       `json:"mtu"`
	// Loopback lets guests reach the host's 127.0.0.1 under the gateway's address. Otherwise nothing of the host's loopback is reachable.
	Loopback bool `json:"loopback,omitempty"`
	// Resolvers are the DNS servers to which queries for the gateway are passed on, in the order of preference.
	Resolvers []netip.AddrPort `json:"resolvers,omitempty"`
}

// GatewayMAC is the address of every switch's user-mode gateway: a switch has one uplink.
var GatewayMAC = vswitch.MAC{0x02, 0x67, 0x72, 0x6c, 0x00, 0x02}

// NATOffloads is what a NAT process takes from the switch; see vswitch.Uplink. It does not verify checksums: between the guest's memory and
// its own there is no wire.
const NATOffloads = vswitch.Offloads &^ virtionet.FeatureGuestTSO6

// Publication is a port of the host's that leads to one of a guest's.
type Publication struct {
	ID  string         `json:"id"` // unique among those of a NAT process
	UDP bool           `json:"udp,omitempty"`
	To  netip.AddrPort `json:"to"`
}

// NATOp is a request on a NAT process's control socket.
type NATOp string

// The operations.
const (
	NATStatus   NATOp = "status"    // answers NATState
	NATEnds     NATOp = "ends"      // answers with both ends of the uplink: near, far
	NATPublish  NATOp = "publish"   // Publication, with its listening socket; one that is published already stays
	NATWithdraw NATOp = "withdraw"  // Publication.ID: closes the socket and the connections through it; unknown ones are no error
	NATFetch    NATOp = "fetch"     // Publication.ID: answers with a duplicate of its socket
	NATResolve  NATOp = "resolvers" // Resolvers replace the former ones
)

// NATRequest is one request. It is answered by a NATResponse, whose Error is empty on success.
type NATRequest struct {
	Op          NATOp            `json:"op"`
	Publication Publication      `json:"publication,omitzero"`
	Resolvers   []netip.AddrPort `json:"resolvers,omitempty"`
}

// NATResponse answers a NATRequest.
type NATResponse struct {
	Error string    `json:"error,omitempty"`
	State *NATState `json:"state,omitempty"`
}

// NATState says how a NAT process is.
type NATState struct {
	Published []Publication `json:"published,omitempty"`
	TCP       int           `json:"tcp"`     // connections, outward and to published ports
	UDP       int           `json:"udp"`     // flows
	Refused   uint64        `json:"refused"` // flows to where guests may not go, or beyond a guest's share
	Dropped   uint64        `json:"dropped"` // frames to the switch for which there was no room, and malformed ones from it
	// Missing says what the host does not allow, in words.
	Missing []string `json:"missing,omitempty"`
}

// ErrNAT is wrapped by a request that a NAT process refused.
var ErrNAT = errors.New("the NAT process refused")

// AskNAT makes one request on a NAT process's control socket at path, with files, which stay the caller's. Files that come back are
// the caller's to close. Errors: ErrNAT, hv.ErrClosed, time-outs.
func AskNAT(path string, timeout time.Duration, req NATRequest, fds ...int) (r NATResponse, got []*os.File, err error) {
	c, err := hv.Dial(path)
	if err != nil {
		return r, nil, err
	}
	defer c.Close()
	if err := c.SetTimeout(timeout); err != nil {
		return r, nil, err
	}
	if err := c.Send(req, fds...); err != nil {
		return r, nil, err
	}
	list, err := c.Receive(&r)
	for _, fd := range list {
		got = append(got, hv.KeptFile(fd, "nat"))
	}
	if err == nil && r.Error != "" {
		err = fmt.Errorf("%w: %s", ErrNAT, r.Error)
	}
	if err != nil {
		CloseFiles(got)
		return r, nil, err
	}
	return r, got, nil
}

// CloseFiles closes what AskNAT returned.
func CloseFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
