package api

import (
	"context"

	"github.com/grailos/grail/hv"
)

// ReclaimVM is the body of POST vms/{name}/reclaim: exactly one of Take, Keep and All is set.
type ReclaimVM struct {
	Take     uint64 `json:"take,omitempty"` // bytes of what the VM uses now to take back
	Keep     uint64 `json:"keep,omitempty"` // bytes that the VM may keep
	All      bool   `json:"all,omitempty"`  // the VM may use all its memory again
	WithinMs int64  `json:"withinMs"`       // the time that the guest has; 0: what is used beyond is taken at once
}

// ReclaimedVM answers ReclaimVM.
type ReclaimedVM struct {
	Name string `json:"name"`
	hv.Reclaimed
	Cause   hv.Cause `json:"cause,omitempty"` // of the VM's end, if it has ended of it
	Message string   `json:"message,omitempty"`
}

// DefaultReclaimMs is how long a guest has to give memory back that is not asked for by somebody who says otherwise.
const DefaultReclaimMs = 5000

// The least memory that a VM can be left with, in bytes.
const (
	MinKeep      = 8 << 20
	MinKeepLinux = 48 << 20
)

// ReclaimVM takes memory back from a VM, or gives it back to it, and returns when that is done.
func (c *Client) ReclaimVM(ctx context.Context, name string, r ReclaimVM) (out ReclaimedVM, err error) {
	return out, c.do(ctx, "POST", "vms/"+seg(name)+"/reclaim", r, &out)
}
