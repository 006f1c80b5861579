package usernet

import (
	"context"
	"fmt"
	stdnet "net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/grailos/grail/drivervms/net"
)

// nic is the stack's one network card.
const nic tcpip.NICID = 1

// Bounds of a TCP connection's buffers in the stack, in bytes. What a guest does not take stays in them.
const (
	leastBuffer   = 4 << 10
	usualBuffer   = 128 << 10
	largestBuffer = 512 << 10
)

// maxDials bounds the guests' TCP connections of which the other end has not answered.
const maxDials = 1024

// NAT is a network stack and what it carries on. Its methods are safe for concurrent use.
type NAT struct {
	cfg   net.NATConfig
	stack *stack.Stack // nil: guests are reached through the host's network
	link  *link
	flows flows
	ends  context.CancelFunc
	life  context.Context
	work  sync.WaitGroup
	pings *pinger
	dial  func(ctx context.Context, network, address string) (stdnet.Conn, error) // to the host's network

	dns atomic.Pointer[[]netip.AddrPort]

	mu        sync.Mutex
	published map[string]*publication
}

// New returns a NAT that serves the switch at the other end of far, a duplicate of what net.NewSocket returns that os.NewFile made, which it takes
// over when it succeeds. With a nil far there is no switch, and published ports alone are served, by the host's own routes.
func New(cfg net.NATConfig, far *os.File) (*NAT, error) {
	n := &NAT{cfg: cfg, flows: flows{byGuest: map[netip.Addr]int{}}, published: map[string]*publication{}, dial: (&stdnet.Dialer{}).DialContext}
	n.SetResolvers(cfg.Resolvers)
	n.life, n.ends = context.WithCancel(context.Background())
	if far == nil {
		return n, nil
	}
	if !cfg.Gateway.Is4() || !cfg.Subnet.Contains(cfg.Gateway) || cfg.MTU < header.IPv4MinimumMTU {
		return nil, fmt.Errorf("gateway %s in %s with an MTU of %d", cfg.Gateway, cfg.Subnet, cfg.MTU)
	}
	var err error
	if n.link, err = newLink(far, cfg.MAC, cfg.MTU); err != nil {
		return nil, err
	}
	if n.stack, err = n.newStack(); err != nil {
		return nil, err
	}
	n.work.Go(func() {
		<-n.life.Done()
		far.Close()
	})
	n.work.Go(func() { _ = n.link.receive(); n.ends() })
	n.work.Go(func() { _ = n.link.send(n.life); n.ends() })
	return n, nil
}

// newStack makes a stack that takes everything which the switch sends it, wherever it is meant to go.
func (n *NAT) newStack() (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	fail := func(what string, err tcpip.Error) (*stack.Stack, error) {
		s.Close()
		return nil, fmt.Errorf("network stack: %s: %s", what, err)
	}
	if err := s.CreateNIC(nic, ethernet.New(n.link.ep)); err != nil {
		return fail("card", err)
	}
	gateway := tcpip.AddrFrom4(n.cfg.Gateway.As4())
	own := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: gateway, PrefixLen: n.cfg.Subnet.Bits()}}
	if err := s.AddProtocolAddress(nic, own, stack.AddressProperties{}); err != nil {
		return fail("address", err)
	}
	if err := s.SetPromiscuousMode(nic, true); err != nil {
		return fail("promiscuous mode", err)
	}
	if err := s.SetSpoofing(nic, true); err != nil {
		return fail("answers in others' names", err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: leastBuffer, Default: usualBuffer, Max: largestBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: leastBuffer, Default: usualBuffer, Max: largestBuffer}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &receive, &send} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fail("TCP options", err)
		}
	}
	n.pings = newPinger(n, s)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, usualBuffer, maxDials, n.forwardTCP).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, n.forwardUDP).HandlePacket)
	s.SetTransportProtocolHandler(icmp.ProtocolNumber4, n.pings.handle)
	return s, nil
}

// Done is closed when the switch's end of the uplink is gone, or after Close.
func (n *NAT) Done() <-chan struct{} { return n.life.Done() }

// Close ends everything and returns when nothing of it is left.
func (n *NAT) Close() {
	n.ends()
	n.mu.Lock()
	for _, p := range n.published {
		p.close()
	}
	n.mu.Unlock()
	if n.stack != nil {
		n.stack.Close()
	}
	n.work.Wait()
}

// SetResolvers replaces the DNS servers.
func (n *NAT) SetResolvers(list []netip.AddrPort) {
	list = slices.Clone(list)
	n.dns.Store(&list)
}

func (n *NAT) resolvers() []netip.AddrPort { return *n.dns.Load() }

// State describes what goes on.
func (n *NAT) State() net.NATState {
	n.flows.mu.Lock()
	s := net.NATState{TCP: n.flows.tcp, UDP: n.flows.udp, Refused: n.flows.refused}
	n.flows.mu.Unlock()
	if n.link != nil {
		s.Dropped = n.link.dropped.Load()
	}
	if n.pings != nil && n.pings.missing != "" {
		s.Missing = append(s.Missing, n.pings.missing)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.published {
		s.Published = append(s.Published, p.Publication)
	}
	return s
}

// guestOf returns the guest's end of a flow.
func guestOf(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(id.RemoteAddress.As4()), id.RemotePort)
}

// wantedBy returns where a guest's flow is meant to go.
func wantedBy(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
}

// addressOf returns the stack's form of an address.
func addressOf(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}
