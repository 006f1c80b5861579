package usernet

import "net/netip"

// dnsPort is that of DNS (RFC 1035).
const dnsPort = 53

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	thisHost  = netip.MustParsePrefix("0.0.0.0/8")   // RFC 1122 §3.2.1.3; the host's kernel takes it for its loopback
	reserved  = netip.MustParsePrefix("240.0.0.0/4") // RFC 1112 §4, with the limited broadcast
)

// target returns where in the host's network a guest's flow to dst goes, and false when it goes nowhere. Refused are the host's loopback, in
// whatever guise; link-local addresses, where clouds keep their secrets; groups; and the switch's own network, which is behind
// us. The gateway's address stands for the host's 127.0.0.1 if that is allowed. DNS to the gateway goes to a resolver, wherever that is.
func (n *NAT) target(dst netip.AddrPort) (netip.AddrPort, bool) {
	a := dst.Addr()
	switch {
	case dst.Port() == 0:
		return dst, false
	case a == n.cfg.Gateway && dst.Port() == dnsPort:
		if r := n.resolvers(); len(r) > 0 {
			return r[0], true
		}
		return dst, false
	case a == n.cfg.Gateway && n.cfg.Loopback:
		return netip.AddrPortFrom(loopback4, dst.Port()), true
	case !a.Is4() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || thisHost.Contains(a) || reserved.Contains(a) || n.cfg.Subnet.Contains(a):
		return dst, false
	}
	return dst, true
}
