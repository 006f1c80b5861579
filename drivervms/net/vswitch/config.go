package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/grailos/grail/ring/virtionet"
)

// Bounds of ports.
const (
	MaxPorts  = 512
	MaxPairs  = 16 // queue pairs a port
	MaxNames  = 4096
	MinMTU    = 576
	MaxMTU    = 65521 // the frame is at most 64 KiB - 1 long
	ethHeader = 14
)

// Defaults of what a PortConfig leaves 0.
const (
	DefaultMTU        = 1500
	DefaultFloodRate  = 1000 // frames a second
	DefaultFloodBurst = 250  // frames
	DefaultDomain     = "grail"
)

// MAC is an Ethernet address.
type MAC [6]byte

// String returns the usual form with colons.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(b []byte) error {
	a, err := net.ParseMAC(string(b))
	if err != nil || len(a) != len(m) {
		return fmt.Errorf("%q is no MAC address: want six bytes like 02:00:00:00:00:01", b)
	}
	copy(m[:], a)
	return nil
}

// key is the address as a number.
func (m MAC) key() uint64 { return keyOf(m[:]) }

func keyOf(b []byte) uint64 {
	return uint64(binary.BigEndian.Uint16(b))<<32 | uint64(binary.BigEndian.Uint32(b[2:]))
}

// multicast is set in a key of a group address.
const multicast = uint64(1) << 40

// PortConfig is what the host says of a port. It crosses the control channel as JSON.
type PortConfig struct {
	Name   string `json:"name"`   // of the VM; its DNS name within the tenant
	Tenant uint16 `json:"tenant"` // ports of different tenants do not see each other
	MAC    MAC    `json:"mac"`    // unique in the switch
	MTU    uint16 `json:"mtu,omitempty"`

	// Addr is the port's IPv4 address with its network's prefix, unique in the switch. The switch answers ARP
	// requests for it, and leases it to the port by DHCP. Not valid: the port has none that the switch knows of.
	Addr  netip.Prefix `json:"addr,omitzero"`
	Addr6 netip.Addr   `json:"addr6,omitzero"` // an IPv6 address beside the link-local one that the MAC implies

	Gateway    netip.Addr `json:"gateway,omitzero"`    // IPv4 router, behind the uplink
	GatewayMAC MAC        `json:"gatewayMAC,omitzero"` // its MAC; zero: learned from its ARP frames
	Service    netip.Addr `json:"service,omitzero"`    // IPv4 address at which the switch answers DNS; not valid: it does not
	Upstream   netip.Addr `json:"upstream,omitzero"`   // IPv4 DNS server behind the uplink for other names; not valid: SERVFAIL
	Domain     string     `json:"domain,omitempty"`    // suffix of DNS names

	Unpinned   bool   `json:"unpinned,omitempty"`   // may use any source address, and receives unknown unicast
	NoUplink   bool   `json:"noUplink,omitempty"`   // reaches its tenant's ports only
	FloodRate  uint32 `json:"floodRate,omitempty"`  // broadcast and multicast frames a second that it may send
	FloodBurst uint32 `json:"floodBurst,omitempty"` // frames at once
}

// withDefaults fills in what is 0.
func (c PortConfig) withDefaults() PortConfig {
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.FloodRate == 0 {
		c.FloodRate = DefaultFloodRate
	}
	if c.FloodBurst == 0 {
		c.FloodBurst = DefaultFloodBurst
	}
	if c.Domain == "" {
		c.Domain = DefaultDomain
	}
	return c
}

// Check reports what is wrong with c, or nil.
func (c PortConfig) Check() error {
	c = c.withDefaults()
	switch k := c.MAC.key(); {
	case k == 0 || k&multicast != 0:
		return fmt.Errorf("%s is no unicast MAC address", c.MAC)
	case c.MAC == ServiceMAC:
		return fmt.Errorf("%s is the switch's own MAC address", c.MAC)
	case c.MTU < MinMTU || c.MTU > MaxMTU:
		return fmt.Errorf("MTU %d; it can be %d to %d", c.MTU, MinMTU, MaxMTU)
	case !validName(c.Name):
		return fmt.Errorf("name %q: want 1 to 63 letters, digits, '-', '_' or '.'", c.Name)
	case len(c.Domain) > 127 || !validName(c.Domain[:min(len(c.Domain), 63)]):
		return fmt.Errorf("domain %q: want letters, digits, '-' or '.'", c.Domain)
	}
	if c.Addr.IsValid() {
		a := c.Addr.Addr()
		if !a.Is4() || a.IsMulticast() || a.IsUnspecified() || a == limitedBroadcast || c.Addr.Bits() < 1 {
			return fmt.Errorf("%s is no IPv4 address with a prefix length", c.Addr)
		}
	}
	if c.Addr6.IsValid() && (!c.Addr6.Is6() || c.Addr6.Is4In6() || c.Addr6.IsMulticast() || c.Addr6.Zone() != "") {
		return fmt.Errorf("%s is no IPv6 address of one host", c.Addr6)
	}
	for _, a := range []netip.Addr{c.Gateway, c.Service, c.Upstream} {
		if a.IsValid() && (!a.Is4() || a.IsUnspecified() || a.IsMulticast()) {
			return fmt.Errorf("%s is no IPv4 address of one host", a)
		}
	}
	if c.Service.IsValid() && (c.Service == c.Addr.Addr() || c.Service == c.Gateway) {
		return errors.New("the switch's own address is the port's or the gateway's")
	}
	return nil
}

// validName keeps names apart from what could confuse logs and DNS.
func validName(s string) bool {
	if len(s) < 1 || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Offloads are the features by which a receiver says what it takes; see Uplink.
const Offloads = virtionet.FeatureGuestCsum | virtionet.FeatureGuestTSO4 | virtionet.FeatureGuestTSO6 | virtionet.FeatureGuestECN

// server returns the address by which the switch signs as DHCP server.
func (c *PortConfig) server() netip.Addr {
	switch {
	case c.Service.IsValid():
		return c.Service
	case c.Gateway.IsValid():
		return c.Gateway
	}
	return netip.AddrFrom4([4]byte{169, 254, 0, 1})
}
