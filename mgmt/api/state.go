package api

import (
	"context"
	"time"
)

// DriverState describes what a driver keeps for its next instance; see hv/state.
type DriverState struct {
	Size        int       `json:"size"`        // of the region, bytes
	Version     uint32    `json:"version"`     // of its contents; another version's program drops them
	Generation  uint64    `json:"generation"`  // counts checkpoints; 0: nothing is kept yet
	Sequence    uint64    `json:"sequence"`    // counts records since the driver was made
	Checkpoints int       `json:"checkpoints"` // valid ones, 0 to 2
	Items       int       `json:"items"`       // records in the newest checkpoint
	Records     int       `json:"records"`     // in the journal, since that checkpoint
	Bytes       int       `json:"bytes"`       // that those take
	Changed     time.Time `json:"changed,omitzero"`
	Saved       time.Time `json:"saved,omitzero"` // to disk, by this graild
}

// DriverState describes what a driver VM keeps for its next instance.
func (c *Client) DriverState(ctx context.Context, name string) (s DriverState, err error) {
	return s, c.do(ctx, "GET", "drivers/"+seg(name)+"/state", nil, &s)
}
