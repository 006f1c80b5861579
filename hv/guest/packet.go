package guest

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
)

// NIC is a network port of this VM, served by a driver VM. Frames are whole Ethernet frames without a checksum behind them. It has
// one or more pairs of queues; the first one is enough for most, and several serve several goroutines without a
// common lock. Methods wait as long as it takes, however often the driver VM dies meanwhile; a frame that was under
// way then may be lost or come twice, as on any network.
type NIC struct {
	name  string
	grant NetGrant
	pairs []*Pair
}

var (
	openedNICs   = map[string]*NIC{}
	openedNICsMu sync.Mutex
)

// OpenNIC returns the port called name, or the first one when name is empty. It maps the port's memory once; opening it
// again yields the same NIC. Errors: ErrOutside; no such port.
func OpenNIC(name string) (*NIC, error) {
	openedNICsMu.Lock()
	defer openedNICsMu.Unlock()
	caps, err := Caps()
	if err != nil {
		return nil, err
	}
	g, ok := find(caps, abi.CapNet, name)
	if !ok {
		return nil, fmt.Errorf("guest: this VM has no network port %q", name)
	}
	if n := openedNICs[g.Name]; n != nil {
		return n, nil
	}
	mem, err := mapMemory(caps, g)
	if err != nil {
		return nil, err
	}
	n, err := NewNIC(g.Name, mem, &g.Config, bells(caps, abi.CapKick, g.Name), bells(caps, abi.CapCall, g.Name))
	if err != nil {
		return nil, err
	}
	openedNICs[g.Name] = n
	return n, nil
}

// NewNIC returns the port in the grant mem, which config describes as NetGrant says, with each queue's doorbells by index. OpenNIC does this with the capability table's entries; tests do it with memory of their
// own. It initialises the queues. Errors: a grant that is invalid or too small, a queue without doorbells.
func NewNIC(name string, mem Memory, config *[64]byte, kick, call map[int]ring.Doorbell) (*NIC, error) {
	g := ParseNetGrant(config)
	if !g.Valid(uint64(len(mem.Buffers))) {
		return nil, fmt.Errorf("guest: port %s: invalid grant of %d bytes, %d queues of %d", name, len(mem.Buffers), g.Queues, g.QueueSize)
	}
	mm, err := mem.holds(g.Queues, g.QueueSize)
	if err != nil {
		return nil, fmt.Errorf("guest: port %s: %w", name, err)
	}
	n := &NIC{name: name, grant: g}
	var queues []*packetQueue
	for i := range int(g.Queues) {
		k, ok1 := kick[i]
		c, ok2 := call[i]
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("guest: port %s: queue %d has no doorbells", name, i)
		}
		drv, err := ring.NewDriver(mm, ring.DriverConfig{Queue: abi.QueueAt(i, g.QueueSize, NetFeatures), UsedReadOnly: true})
		if err != nil {
			return nil, fmt.Errorf("guest: port %s, queue %d: %w", name, i, err)
		}
		size := uint64(g.QueueSize) * g.bufferBytes()
		off := uint64(i) * size
		queues = append(queues, newPacketQueue(drv, k, c, newEpoch(&mem, i), mem.Buffers[off:][:size:size], off, &g))
	}
	for i, q := range queues {
		q.receives = i%2 == 0
		q.all = queues
	}
	for i := 0; i < len(queues); i += 2 {
		p := &Pair{rx: queues[i], tx: queues[i+1]}
		p.rx.offerAll()
		p.tx.allFree()
		p.rx.renew() // a driver may have broken the rules before we came
		n.pairs = append(n.pairs, p)
	}
	return n, nil
}

// Name returns the port's name.
func (n *NIC) Name() string { return n.name }

// MAC returns the port's Ethernet address; the switch lets it use no other.
func (n *NIC) MAC() [6]byte { return n.grant.Config.MAC }

// MTU returns the most bytes behind the Ethernet header of a frame.
func (n *NIC) MTU() int { return int(n.grant.mtu()) }

// Addr returns the port's IPv4 address and network; not valid when it has none.
func (n *NIC) Addr() netip.Prefix { return n.grant.Addr }

// Gateway returns the network's IPv4 router; not valid when it has none.
func (n *NIC) Gateway() netip.Addr { return n.grant.Gateway }

// DNS returns the name server's IPv4 address; not valid when there is none.
func (n *NIC) DNS() netip.Addr { return n.grant.DNS }

// Addr6 returns the port's IPv6 address beside the link-local one; not valid when it has none.
func (n *NIC) Addr6() netip.Addr { return n.grant.Addr6 }

// Pairs returns the port's pairs of queues, at least one.
func (n *NIC) Pairs() []*Pair { return n.pairs }

// Send sends frames by the first pair; see Pair.Send.
func (n *NIC) Send(frames ...[]byte) (int, error) { return n.pairs[0].Send(frames...) }

// Receive receives frames by the first pair; see Pair.Receive.
func (n *NIC) Receive(bufs [][]byte) (int, error) { return n.pairs[0].Receive(bufs) }

// Errors of a NIC.
var (
	// ErrFrame reports a frame to be sent that is shorter than an Ethernet header or longer than the MTU allows.
	ErrFrame = errors.New("guest: frame is too short or too long for the port")

	// ErrTimeout reports that nothing came in time.
	ErrTimeout = errors.New("guest: no frame came in time")
)
