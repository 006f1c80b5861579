package net

import (
	"encoding/json"
	"fmt"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// Port is a port as it is offered to clients.
type Port struct {
	vswitch.PortConfig
	Pairs int // offered queue pairs, 1..vswitch.MaxPairs
}

// Check reports what is wrong with p, or nil.
func (p Port) Check() error {
	if p.Pairs < 1 || p.Pairs > vswitch.MaxPairs {
		return fmt.Errorf("%d queue pairs; a port can have 1 to %d", p.Pairs, vswitch.MaxPairs)
	}
	return p.PortConfig.Check()
}

// Features returns the virtio features that p offers. A vhost-user back end adds its own to them. Multi-queue needs
// a control queue, which vhost-user front ends keep to themselves (virtio 1.2 §5.1.3.1): there MQ is offered by the
// vhost-user protocol's own MQ.
func (p Port) Features() uint64 {
	f := guest.NetFeatures | vswitch.Offloads | virtionet.FeatureCsum | virtionet.FeatureHostTSO4 | virtionet.FeatureHostTSO6 |
		virtionet.FeatureHostECN | virtionet.FeatureMergeable | virtionet.FeatureStatus
	if p.Pairs > 1 {
		f |= virtionet.FeatureMultiQueue
	}
	return f
}

func (p Port) mtu() uint16 {
	if p.MTU == 0 {
		return vswitch.DefaultMTU
	}
	return p.MTU
}

// Config returns struct virtio_net_config for p (virtio 1.2 §5.1.4).
func (p Port) Config() virtionet.Config {
	return virtionet.Config{MAC: p.MAC, Status: virtionet.StatusLinkUp, MaxPairs: uint16(p.Pairs), MTU: p.mtu()}
}

// CheckFeatures refuses a set of features that a client may not have negotiated: one that p does not offer, one
// without VIRTIO_F_VERSION_1, or one that lacks what another needs (virtio 1.2 §5.1.3.1).
func (p Port) CheckFeatures(features uint64) error {
	if extra := features &^ (p.Features() | virtionet.FeatureControl); extra != 0 {
		return fmt.Errorf("features %#x were not offered", extra)
	}
	if features&ring.FeatureVersion1 == 0 {
		return fmt.Errorf("legacy virtio is not supported: VIRTIO_F_VERSION_1 is missing")
	}
	for _, n := range []struct{ has, needs uint64 }{
		{virtionet.FeatureGuestTSO4, virtionet.FeatureGuestCsum}, {virtionet.FeatureGuestTSO6, virtionet.FeatureGuestCsum},
		{virtionet.FeatureHostTSO4, virtionet.FeatureCsum}, {virtionet.FeatureHostTSO6, virtionet.FeatureCsum},
	} {
		if features&n.has != 0 && features&n.needs == 0 {
			return fmt.Errorf("feature %#x needs %#x", n.has, n.needs)
		}
	}
	return nil
}

// DefaultQueueSize is the size of a native client's queues.
const DefaultQueueSize = 256

// Grant returns the description of a native client's grant for p.
func (p Port) Grant(queueSize uint16) guest.NetGrant {
	dns := p.Service
	if !dns.IsValid() {
		dns = p.Upstream
	}
	return guest.NetGrant{
		Config: p.Config(), Addr: p.Addr, Gateway: p.Gateway, DNS: dns, Addr6: p.Addr6,
		QueueSize: queueSize, Queues: uint16(2 * p.Pairs),
	}
}

// AttachText returns what stands in the Text of an abi.MsgAttach for p.
func (p Port) AttachText() (string, error) {
	b, err := json.Marshal(p.PortConfig)
	return string(b), err
}
