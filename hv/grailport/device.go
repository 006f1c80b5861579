package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtionet"
)

// Bounds of a network card's clients.
const (
	maxPortClients = 4               // connections: one that is served, the others wait for it to be gone
	maxNetName     = 64              // bytes of the name, which is in every message about a queue
	claimWait      = 5 * time.Second // how long they wait
)

// errBusy reports a second client of a network card.
var errBusy = errors.New("the network card has a client already: disconnect that one first")

// device is one device and the claims of its clients.
type device struct {
	hv.PortalDevice
	wait    time.Duration
	present chan struct{} // PortalNet: a token for each connection
	served  chan struct{} // PortalNet: a token for the one that is served
}

func newDevice(d hv.PortalDevice) *device {
	n := &device{PortalDevice: d, wait: claimWait}
	if d.Kind == hv.PortalNet {
		n.present, n.served = make(chan struct{}, maxPortClients), make(chan struct{}, 1)
	}
	return n
}

// checkDevice reports what is wrong with a device of a specification.
func checkDevice(d hv.PortalDevice) error {
	if d.Queues < 1 || d.Queues > vhostuser.MaxQueues || len(d.Space) > vhostuser.MaxConfig {
		return fmt.Errorf("%d queues, %d bytes of configuration space", d.Queues, len(d.Space))
	}
	if len(d.Config) > hv.MaxConfig {
		return fmt.Errorf("%d bytes for the driver, the limit is %d", len(d.Config), hv.MaxConfig)
	}
	switch d.Kind {
	case "", hv.PortalBlk:
	case hv.PortalNet:
		if d.Queues%2 != 0 {
			return fmt.Errorf("%d queues of a network card: want pairs", d.Queues)
		}
		if d.Name == "" || len(d.Name) > maxNetName {
			return fmt.Errorf("name of %d bytes: want 1 to %d", len(d.Name), maxNetName)
		}
	default:
		return fmt.Errorf("unknown kind %q: want %q or %q", d.Kind, hv.PortalBlk, hv.PortalNet)
	}
	return nil
}

// features returns the virtio features offered to a client that knows of all queues.
func (d *device) features() uint64 {
	if d.Kind == hv.PortalNet && d.Queues <= 2 {
		return d.Features &^ virtionet.FeatureMultiQueue
	}
	return d.Features
}

// protocol returns the protocol features offered.
func (d *device) protocol() uint64 {
	if d.Kind == hv.PortalNet {
		return vhostuser.ProtocolSupported &^ vhostuser.ProtocolInflight
	}
	return vhostuser.ProtocolSupported
}

// single says what a client has that knows of no more than one queue, or one pair.
func (d *device) single() (queues uint16, without uint64) {
	if d.Kind == hv.PortalNet {
		return 2, virtionet.FeatureMultiQueue
	}
	return uint16(d.Queues), 0
}

// admit reports whether there is room for one more connection; dismiss undoes it.
func (d *device) admit() bool {
	if d.Kind != hv.PortalNet {
		return true
	}
	select {
	case d.present <- struct{}{}:
		return true
	default:
		return false
	}
}

func (d *device) dismiss() {
	if d.Kind == hv.PortalNet {
		<-d.present
	}
}

// claim waits until the device can be served to one more client; release undoes it. A client that comes back
// finds its former self still there, until graild has detached its queues. Errors: errBusy.
func (d *device) claim() error {
	if d.Kind != hv.PortalNet {
		return nil
	}
	timeout := time.NewTimer(d.wait)
	defer timeout.Stop()
	select {
	case d.served <- struct{}{}:
		return nil
	case <-timeout.C:
		return errBusy
	}
}

func (d *device) release() {
	if d.Kind == hv.PortalNet {
		<-d.served
	}
}
