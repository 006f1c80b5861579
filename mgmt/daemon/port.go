package daemon

import (
	"crypto/sha256"
	"fmt"
	"net/netip"

	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// defaultSubnet is where a net driver's ports get their addresses from, unless it is told otherwise.
const defaultSubnet = "10.77.0.0/16"

// maxPorts bounds the ports of a driver: each has a socket, and its queues are set aside in the portal.
const maxPorts = hv.MaxPortalQueues / 2

// checkPorts refuses ports that make no sense, and gives each a MAC address and an IP address. The first address of the subnet is the switch's own,
// which answers DNS; the last one is the gateway's, if there is one.
func checkPorts(c *api.DriverConfig) error {
	if c.Subnet == "" {
		c.Subnet = defaultSubnet
	}
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil || !subnet.Addr().Is4() || subnet != subnet.Masked() {
		return api.Errorf(api.Invalid, "subnet %q is no IPv4 network, such as %s", c.Subnet, defaultSubnet)
	}
	kind, err := uplinkOf(c)
	if err != nil {
		return err
	}
	reserved := 3 // the network's own address, the switch's, and the broadcast address
	if kind.kind == noUplink {
		c.Uplink = ""
	} else {
		reserved++ // the gateway's
	}
	switch {
	case len(c.Disks) > 0:
		return api.Errorf(api.Invalid, "a net driver has ports and no disks")
	case len(c.Ports) == 0:
		return api.Errorf(api.Invalid, "a net driver needs a port; give one with --port NAME")
	case len(c.Ports) > maxPorts:
		return api.Errorf(api.Invalid, "%d ports are too many; a driver can have %d", len(c.Ports), maxPorts)
	case subnet.Bits() > 30 || len(c.Ports) > 1<<(32-subnet.Bits())-reserved:
		return api.Errorf(api.Invalid, "subnet %s has no addresses for %d ports", subnet, len(c.Ports))
	}
	seen := map[string]bool{}
	queues := 0
	address := subnet.Addr().Next()
	for i := range c.Ports {
		p := &c.Ports[i]
		if err := checkName("port", p.Name, maxDiskID); err != nil {
			return err
		}
		if seen[p.Name] {
			return api.Errorf(api.Invalid, "port %s is given twice", p.Name)
		}
		seen[p.Name] = true
		if p.Queues < 0 || p.Queues > vswitch.MaxPairs {
			return api.Errorf(api.Invalid, "port %s: %d pairs of queues; give 1 to %d", p.Name, p.Queues, vswitch.MaxPairs)
		}
		if queues += 2 * max(1, p.Queues); queues > hv.MaxPortalQueues {
			return api.Errorf(api.Invalid, "the ports have more than %d pairs of queues in all, which is what a driver can have", hv.MaxPortalQueues/2)
		}
		address = address.Next()
		p.Address, p.MAC = netip.PrefixFrom(address, subnet.Bits()), portMAC(c.Name, p.Name)
		if err := port(c, p).Check(); err != nil {
			return api.Errorf(api.Invalid, "port %s: %v", p.Name, err)
		}
	}
	return nil
}

// portMAC returns a locally administered address that a port always has.
func portMAC(driver, name string) string {
	h := sha256.Sum256([]byte(driver + "/" + name))
	m := vswitch.MAC{0x02, h[0], h[1], h[2], h[3], h[4]}
	return m.String()
}

// port describes a port to the driver.
func port(c *api.DriverConfig, p *api.Port) net.Port {
	subnet := p.Address.Masked()
	out := net.Port{Pairs: max(1, p.Queues), PortConfig: vswitch.PortConfig{Name: p.Name, Tenant: p.Tenant, Addr: p.Address, Unpinned: p.Unpinned, Service: subnet.Addr().Next()}}
	switch u, err := uplinkOf(c); {
	case err != nil || u.kind == noUplink:
		out.NoUplink = true
	case u.kind == tapUplink: // whose other end may be a bridge: the gateway's hardware address shows by ARP
		out.Gateway = lastAddress(subnet)
		out.Upstream = distantResolver(hostResolvers())
	default:
		out.Gateway = lastAddress(subnet)
		out.GatewayMAC, out.Upstream = net.GatewayMAC, out.Gateway
	}
	// An address that portMAC has not made is one that Check refuses.
	_ = out.MAC.UnmarshalText([]byte(p.MAC))
	return out
}

// portDevice describes a port to the portal.
func portDevice(c *api.DriverConfig, p *api.Port) (hv.PortalDevice, error) {
	n := port(c, p)
	text, err := n.AttachText()
	if err != nil {
		return hv.PortalDevice{}, fmt.Errorf("port %s: %w", p.Name, err)
	}
	config := n.Config()
	space := config.Encode()
	return hv.PortalDevice{Kind: hv.PortalNet, Name: p.Name, Features: n.Features(), Space: space[:], Queues: 2 * n.Pairs, Config: text}, nil
}

// portOf finds a port of the driver.
func (dr *driver) portOf(name string) (api.Port, error) {
	var have []string
	for _, p := range dr.rec.Config.Ports {
		if p.Name == name {
			return p, nil
		}
		have = append(have, p.Name)
	}
	return api.Port{}, api.Errorf(api.NotFound, "driver %s has no port %q; it has %s", dr.name(), name, quoted(have))
}

// checkPortFeatures refuses what a client of a port may not have negotiated. A disk's are checked by its portal.
func (dr *driver) checkPortFeatures(att hv.Attachment) error {
	if dr.rec.Config.Type != typeNet {
		return nil
	}
	p, err := dr.portOf(att.Disk)
	if err != nil {
		return err
	}
	return port(&dr.rec.Config, &p).CheckFeatures(att.Features)
}
