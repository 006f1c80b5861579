package api

import "context"

// SetDriver is the body of POST drivers/{name}/set: how a driver's death is found out and dealt with, which can be changed while the driver runs. What is
// nil stays as it is. The fields of DriverConfig of the same names have the defaults given here.
type SetDriver struct {
	HeartbeatMs *int    `json:"heartbeatMs,omitempty"` // longest silence with work pending; 50, of a console driver 200
	DeadlineMs  *int    `json:"deadlineMs,omitempty"`  // how long a driver that beats may leave a request lying that it has taken; 2,000
	Spares      *int    `json:"spares,omitempty"`      // booted instances kept in reserve, at most MaxSpares; 1
	Policy      *Policy `json:"policy,omitempty"`      // what clients see of a driver that does not serve; PolicyStall
	FailAfterMs *int    `json:"failAfterMs,omitempty"` // with PolicyFail; 30,000
}

// MaxSpares is how many booted instances a driver can have in reserve.
const MaxSpares = 4

// Policy says what clients see of a driver that does not serve.
type Policy string

// The policies.
const (
	PolicyStall Policy = "stall" // they wait
	PolicyFail  Policy = "fail"  // after FailAfterMs, disks fail every request and networks drop every frame, until the driver serves again
)

// SetDriver changes a driver's policy.
func (c *Client) SetDriver(ctx context.Context, name string, r SetDriver) (d Driver, err error) {
	return d, c.do(ctx, "POST", "drivers/"+seg(name)+"/set", r, &d)
}
