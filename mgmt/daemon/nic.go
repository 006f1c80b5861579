package daemon

import (
	"context"
	"time"

	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/mgmt/api"
)

// portPatience is how long a VM that starts waits for the last one on its port to be gone from the driver.
const portPatience = 3 * time.Second

// portGrant makes a VM's end of a port of the driver, as the VM named vm sees it under the name capName.
func (d *Daemon) portGrant(vm string, ref api.NetRef, capName string) (*grant, error) {
	dr, err := d.driver(ref.Driver)
	if err != nil {
		return nil, err
	}
	p, err := dr.portOf(ref.Port)
	if err != nil {
		return nil, err
	}
	if err := dr.awaitPort(p.Name); err != nil {
		return nil, err
	}
	offer := port(&dr.rec.Config, &p)
	shape := offer.Grant(net.DefaultQueueSize)
	text, err := offer.AttachText()
	if err != nil {
		return nil, err
	}
	var config [64]byte
	shape.Put(&config)
	// The host maps whole pages.
	bytes := (shape.Size() + 4095) &^ 4095
	att := hv.Attachment{Client: vm, Driver: ref.Driver, Disk: ref.Port, Config: text, Features: guest.NetFeatures}
	return d.newGrant(dr, att, hv.CapSpec{Kind: abi.CapNet, Name: capName, Rights: abi.RightRead | abi.RightWrite, Config: config[:]},
		geometry{bytes: bytes, queues: int(shape.Queues), queueSize: shape.QueueSize})
}

// awaitPort returns when nobody is plugged into the port. It refuses one that a native VM has, and waits for others, which may be about to
// leave.
func (dr *driver) awaitPort(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), portPatience)
	defer cancel()
	var c *client
	err := dr.waitFor(ctx, func() bool {
		c = dr.holder(name)
		return c == nil || c.staysNative()
	})
	if c != nil {
		return dr.portBusy(c)
	}
	return err
}

// holder returns the client that is plugged into a port, or nil. The caller holds dr.mu.
func (dr *driver) holder(name string) *client {
	for _, c := range dr.clients {
		if c.att.Disk == name {
			return c
		}
	}
	return nil
}

// staysNative reports whether c is a native VM's and not about to leave.
func (c *client) staysNative() bool { return c.att.ID < hv.PortalIDs && !c.leaving() }

// checkPort refuses a port for a client of its socket that a native VM has. The portal sees to it that the clients of the
// socket follow each other.
func (dr *driver) checkPort(name string) error {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	if c := dr.holder(name); c != nil && c.staysNative() {
		return dr.portBusy(c)
	}
	return nil
}

func (dr *driver) portBusy(c *client) error {
	return api.Errorf(api.Busy, "port %s/%s is in use by %s; one client at a time can be plugged into a port", dr.name(), c.att.Disk, c.att.Client)
}
