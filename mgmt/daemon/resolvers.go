package daemon

import (
	"net/netip"
	"os"
	"strings"
)

// resolvConf is where the host names its DNS servers (resolv.conf(5)).
const resolvConf = "/etc/resolv.conf"

// hostResolvers returns the host's IPv4 DNS servers in their order.
func hostResolvers() []netip.AddrPort {
	b, err := os.ReadFile(resolvConf)
	if err != nil {
		return nil
	}
	return parseResolvers(string(b))
}

// maxResolvers is how many the C library looks at (MAXNS).
const maxResolvers = 3

func parseResolvers(text string) (list []netip.AddrPort) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(list) == maxResolvers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && a.Unmap().Is4() {
			list = append(list, netip.AddrPortFrom(a.Unmap(), 53))
		}
	}
	return list
}

// distantResolver returns the first DNS server that guests can ask by the host's routes: one that is not on its loopback, at the usual port. The zero
// Addr: there is none.
func distantResolver(list []netip.AddrPort) netip.Addr {
	for _, a := range list {
		if !a.Addr().IsLoopback() && !a.Addr().IsUnspecified() {
			return a.Addr()
		}
	}
	return netip.Addr{}
}
