package agent

import (
	"context"
	"time"
)

// Device names a disk or a network card of the guest: exactly one of the two is set.
type Device struct {
	Serial string `json:",omitempty"` // of a virtio-blk disk, at most 20 characters
	MAC    string `json:",omitempty"` // of a network card
	WaitMs int64  `json:",omitempty"` // how long MethodAwait waits. 0: 10 s
}

// Found is what the guest calls a device: "vdb", "eth1".
type Found struct{ Name string }

// AwaitDevice waits until the guest's kernel knows a device that was plugged in, and returns what it is called. Errors: ErrGuest if it did
// not come within wait (0: 10 s).
func (c *Client) AwaitDevice(ctx context.Context, d Device, wait time.Duration) (string, error) {
	d.WaitMs = wait.Milliseconds()
	var f Found
	err := c.call(ctx, MethodAwait, d, &f)
	return Clean(f.Name), err
}

// ReleaseDevice has the guest's kernel let go of a device, so that it can be unplugged; what was written to a disk is on it then. Errors:
// ErrGuest if something in the guest uses a disk, which then stays as it is, or if there is no such device.
func (c *Client) ReleaseDevice(ctx context.Context, d Device) error {
	return c.call(ctx, MethodRelease, d, nil)
}
