package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Publish makes a port of a VM reachable at an address of the host, for as long as the VM runs. The VM's first network card is meant, whose
// driver needs an uplink.
type Publish struct {
	Address netip.AddrPort `json:"address"` // on the host
	Port    uint16         `json:"port"`    // of the VM
	UDP     bool           `json:"udp,omitempty"`
}

// publishLocal is where a port is published unless it says something else: on this host alone.
var publishLocal = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// String returns the form that ParsePublish reads.
func (p Publish) String() string {
	s := fmt.Sprintf("%s:%d", p.Address, p.Port)
	if p.UDP {
		s += "/udp"
	}
	return s
}

// ParsePublish reads [IP:]HOSTPORT:PORT[/udp]. Without an IP address it is 127.0.0.1; an IPv6 address stands in brackets.
func ParsePublish(s string) (Publish, error) {
	bad := func(why string) (Publish, error) {
		return Publish{}, fmt.Errorf("%q: %s; give [IP:]HOSTPORT:PORT[/udp], such as 8080:80 or 0.0.0.0:5353:53/udp", s, why)
	}
	rest, proto, slash := strings.Cut(s, "/")
	if slash && proto != "udp" && proto != "tcp" {
		return bad("the protocol " + strconv.Quote(proto) + " is neither tcp nor udp")
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return bad("there is no port of the VM")
	}
	port, err := parsePort(rest[i+1:])
	if err != nil {
		return bad(err.Error())
	}
	p := Publish{Port: port, UDP: proto == "udp"}
	host, ip := rest[:i], publishLocal
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		text := host[:i]
		if in, ok := strings.CutPrefix(text, "["); ok && strings.HasSuffix(in, "]") {
			text = strings.TrimSuffix(in, "]")
		}
		if ip, err = netip.ParseAddr(text); err != nil || ip.Zone() != "" {
			return bad(strconv.Quote(text) + " is no IP address of the host")
		}
		host = host[i+1:]
	}
	if port, err = parsePort(host); err != nil {
		return bad(err.Error())
	}
	p.Address = netip.AddrPortFrom(ip.Unmap(), port)
	return p, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port from 1 to 65535", s)
	}
	return uint16(n), nil
}

// MaxPublish bounds the ports that a VM publishes.
const MaxPublish = 64

// CheckPublish refuses what makes no sense, whoever sent it.
func CheckPublish(c *VMConfig) error {
	switch {
	case len(c.Publish) == 0:
		return nil
	case len(c.Nets) == 0:
		return Errorf(Invalid, "a VM without a network card has nothing to publish; plug it into a net driver with --net DRIVER/PORT")
	case len(c.Publish) > MaxPublish:
		return Errorf(Invalid, "%d published ports are too many; a VM can have %d", len(c.Publish), MaxPublish)
	}
	seen := map[Publish]bool{}
	for _, p := range c.Publish {
		if a := p.Address; !a.IsValid() || a.Addr().IsMulticast() || a.Addr().Zone() != "" || a.Port() == 0 || p.Port == 0 {
			return Errorf(Invalid, "published port %s is no port of the host and one of the VM", p)
		}
		p.Port = 0
		if seen[p] {
			return Errorf(Invalid, "port %s of the host is published twice", p.Address)
		}
		seen[p] = true
	}
	return nil
}

// NAT is a net driver's way out of the host, as graild sees it.
type NAT struct {
	PID       int      `json:"pid,omitempty"`
	Gateway   string   `json:"gateway"`
	Ends      int      `json:"ends"`              // how often its process ended unasked, since graild's start
	LastEnd   string   `json:"lastEnd,omitempty"` // when and why
	Published []string `json:"published,omitempty"`
	Missing   []string `json:"missing,omitempty"` // what the host does not allow
	Error     string   `json:"error,omitempty"`   // why there is no process now
}
