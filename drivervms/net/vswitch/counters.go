package vswitch

// Reason says why a frame was dropped.
type Reason uint8

// The reasons. Those of a sender's fault are counted at the sender, those from RxFull on at the receiver.
const (
	Delivered    Reason = iota
	DropHeader          // virtio-net header contradicts the frame or the features
	DropShort           // shorter than an Ethernet header, or than its own headers say
	DropOversize        // longer than the sender's or the receiver's MTU allows
	DropTagged          // has a VLAN tag
	DropProtocol        // neither IPv4 nor IPv6 nor ARP, from a pinned port
	DropSpoof           // source MAC or IP address, or ARP sender, is not the port's
	DropServer          // DHCP server or IPv6 router frames from a pinned port
	DropFlood           // more broadcast or multicast than allowed
	DropTenant          // to an address of another tenant
	DropService         // to the switch's own services, not understood or too many
	DropNowhere         // nobody has the destination address
	DropOffload         // segmentation or checksum that cannot be done
	DropUplink          // the uplink is full or refused the frame
	DropDown            // the switch stands in for one that does not serve
	DropRxFull          // the receiver has no buffers
	DropRxSmall         // the receiver's buffers are too small
	numReasons
)

var reasonNames = [numReasons]string{"delivered", "header", "short", "oversize", "tagged", "protocol", "spoof", "server", "flood",
	"tenant", "service", "nowhere", "offload", "uplink", "down", "rxFull", "rxSmall"}

// String returns the reason's name in counters.
func (r Reason) String() string {
	if r >= numReasons {
		return "unknown"
	}
	return reasonNames[r]
}

// Counters counts what one port, or the uplink, did. Tx is what the client sent, Rx what it received. It holds nothing but words, since
// it lives in a region that survives the switch; see state.go.
type Counters struct {
	TxPackets, TxBytes uint64 // taken from the client, dropped ones included
	RxPackets, RxBytes uint64 // delivered to the client
	Flooded            uint64 // copies for ports and the uplink of what was sent to one address of which nobody knew where it is
	Drops              [numReasons]uint64
}

// Map returns the counters by name; zero drops are left out.
func (c *Counters) Map() map[string]uint64 {
	m := map[string]uint64{"txPackets": c.TxPackets, "txBytes": c.TxBytes, "rxPackets": c.RxPackets, "rxBytes": c.RxBytes}
	if c.Flooded > 0 {
		m["flooded"] = c.Flooded
	}
	for i, n := range c.Drops {
		if n > 0 {
			m["drop."+Reason(i).String()] = n
		}
	}
	return m
}
