package api

import "context"

// String returns the device as a person names it.
func (d Device) String() string {
	switch {
	case d.Net != nil:
		return d.Net.Driver + "/" + d.Net.Port
	case d.Disk == nil:
		return ""
	case d.Disk.ReadOnly:
		return d.Disk.Driver + "/" + d.Disk.Disk + ":ro"
	}
	return d.Disk.Driver + "/" + d.Disk.Disk
}

// Attach gives a VM one more disk or network card, at once if it runs.
func (c *Client) Attach(ctx context.Context, vm string, dev Device) (a Attached, err error) {
	return a, c.do(ctx, "POST", "vms/"+seg(vm)+"/attach", dev, &a)
}

// Detach takes a disk or a network card away from a VM, at once if it runs. Errors: Busy if the guest uses it.
func (c *Client) Detach(ctx context.Context, vm string, dev Device) error {
	return c.do(ctx, "POST", "vms/"+seg(vm)+"/detach", dev, nil)
}
