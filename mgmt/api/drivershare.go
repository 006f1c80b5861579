package api

import (
	"context"

	"github.com/grailos/grail/drivervms/share"
)

// DriverShare says what a client gets of a driver beside the other clients. It is the body of POST drivers/{name}/shares, in place of what was said of that
// client before; an empty Config is the default again.
type DriverShare struct {
	// Client is the name of a VM, of a disk or port of the driver, or VM/DISK. Where several apply, VM/DISK goes before VM, and that before the disk.
	Client string       `json:"client"`
	Config share.Config `json:"config"`
	// Attached is there in answers only: a client that is attached now and of which nothing was said for this driver. Config is what the
	// reservations of its VM and of the tenants above give it.
	Attached bool `json:"attached,omitempty"`
}

// SetDriverShare changes what a client gets of a driver, from now on, and answers when the driver does so.
func (c *Client) SetDriverShare(ctx context.Context, name string, s DriverShare) error {
	return c.do(ctx, "POST", "drivers/"+seg(name)+"/shares", s, nil)
}

// DriverShares lists what was said of the clients of a driver, by name, then what those get that are attached and of which nothing was said.
func (c *Client) DriverShares(ctx context.Context, name string) (list []DriverShare, err error) {
	return list, c.do(ctx, "GET", "drivers/"+seg(name)+"/shares", nil, &list)
}
