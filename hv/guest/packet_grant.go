package guest

import (
	"encoding/binary"
	"net/netip"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// NetFeatures are the virtio features that a native client always uses; whoever attaches its queues to a driver
// negotiates these. It takes and sends frames that are complete: the switch segments and completes for it.
const NetFeatures = ring.FeatureVersion1 | ring.FeatureEventIdx | ring.FeatureIndirect | virtionet.FeatureMAC | virtionet.FeatureMTU

// NetGrant describes what a native client shares with a net driver VM, in the three parts that abi.RingsAt lays out. Queue 2i receives and
// queue 2i+1 transmits for pair i.
//
// In a CapNet's Config, bytes 0 to 23 are a struct virtio_net_config (virtio 1.2 §5.1.4), then come the port's IPv4 address (4 bytes), its
// prefix length (1), 3 bytes of 0, the gateway and the DNS server (4 each, 0: none), an IPv6 address (16, 0: none); bytes
// 60 and 61 are the queue size and bytes 62 and 63 the number of queues, little-endian.
type NetGrant struct {
	Config    virtionet.Config
	Addr      netip.Prefix // not valid: none
	Gateway   netip.Addr
	DNS       netip.Addr
	Addr6     netip.Addr
	QueueSize uint16 // descriptors a queue, a power of two
	Queues    uint16 // number of queues, even
}

// Bounds of a net grant's geometry.
const (
	MaxNetQueueSize = abi.MaxDiskQueueSize
	MaxNetQueues    = 32
)

// ParseNetGrant takes the grant's description from a CapNet's Config.
func ParseNetGrant(config *[64]byte) NetGrant {
	g := NetGrant{
		Config:    virtionet.DecodeConfig(config[:virtionet.ConfigBytes]),
		QueueSize: binary.LittleEndian.Uint16(config[60:]), Queues: binary.LittleEndian.Uint16(config[62:]),
	}
	if a := address(config[24:28]); a.IsValid() && config[28] <= 32 {
		g.Addr = netip.PrefixFrom(a, int(config[28]))
	}
	g.Gateway, g.DNS, g.Addr6 = address(config[32:36]), address(config[36:40]), address(config[40:56])
	return g
}

func address(b []byte) netip.Addr {
	if a, ok := netip.AddrFromSlice(b); ok && !a.IsUnspecified() {
		return a
	}
	return netip.Addr{}
}

// Put writes the grant's description into a CapNet's Config.
func (g NetGrant) Put(config *[64]byte) {
	*config = [64]byte{}
	c := g.Config.Encode()
	copy(config[:], c[:])
	copy(config[24:28], g.Addr.Addr().AsSlice())
	config[28] = byte(max(g.Addr.Bits(), 0))
	copy(config[32:36], g.Gateway.AsSlice())
	copy(config[36:40], g.DNS.AsSlice())
	copy(config[40:56], g.Addr6.AsSlice())
	binary.LittleEndian.PutUint16(config[60:], g.QueueSize)
	binary.LittleEndian.PutUint16(config[62:], g.Queues)
}

// FrameBytes returns the longest frame of the port, in bytes: an Ethernet header and the MTU.
func (g NetGrant) FrameBytes() int { return 14 + int(g.mtu()) }

func (g NetGrant) mtu() uint16 {
	if g.Config.MTU == 0 {
		return 1500
	}
	return g.Config.MTU
}

// bufferBytes returns the size of one buffer: header and frame, in whole cache lines.
func (g NetGrant) bufferBytes() uint64 {
	return (virtionet.HeaderBytes + uint64(g.FrameBytes()) + 127) &^ 127
}

// Size returns the least size of the buffers, in bytes.
func (g NetGrant) Size() uint64 {
	return uint64(g.Queues) * uint64(g.QueueSize) * g.bufferBytes()
}

// Valid reports whether the geometry is within bounds and fits size bytes of buffers.
func (g NetGrant) Valid(size uint64) bool {
	return g.QueueSize != 0 && g.QueueSize&(g.QueueSize-1) == 0 && g.QueueSize <= MaxNetQueueSize &&
		g.Queues != 0 && g.Queues%2 == 0 && g.Queues <= MaxNetQueues && g.Size() <= size
}
