package usernet

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	grailnet "github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/drivervms/net/vswitch"
)

var (
	testSubnet  = netip.MustParsePrefix("10.9.0.0/24")
	testGateway = netip.MustParseAddr("10.9.0.254")
	testGuest   = netip.MustParseAddr("10.9.0.2")
)

func testConfig(loopback bool, resolvers ...netip.AddrPort) grailnet.NATConfig {
	return grailnet.NATConfig{Subnet: testSubnet, Gateway: testGateway, MAC: grailnet.GatewayMAC, MTU: 1500, Loopback: loopback, Resolvers: resolvers}
}

// wire is a NAT and a guest's network stack with no switch between them.
type wire struct {
	t     *testing.T
	nat   *NAT
	far   *os.File
	guest *stack.Stack
}

func newWire(t *testing.T, cfg grailnet.NATConfig) *wire {
	t.Helper()
	near, far, err := grailnet.NewSocket(grailnet.NATOffloads)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, far: far}
	w.open(cfg)
	w.guest = newGuest(t, polled(t, near.File))
	near.File.Close()
	t.Cleanup(func() {
		w.nat.Close()
		far.Close()
	})
	return w
}

// open starts a NAT on a duplicate of the far end.
func (w *wire) open(cfg grailnet.NATConfig) {
	w.t.Helper()
	var err error
	if w.nat, err = New(cfg, polled(w.t, w.far)); err != nil {
		w.t.Fatal(err)
	}
}

// polled returns a duplicate of a file that hv.KeptFile made, on which reads wait.
func polled(t testing.TB, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// newGuest returns the stack of a guest on a link of the same kind.
func newGuest(t *testing.T, near *os.File) *stack.Stack {
	t.Helper()
	l, err := newLink(near, vswitch.MAC{2, 0, 0, 0, 0, 2}, 1500)
	if err != nil {
		t.Fatal(err)
	}
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := s.CreateNIC(nic, ethernet.New(l.ep)); err != nil {
		t.Fatal(err)
	}
	own := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(testGuest.As4()), PrefixLen: 24}}
	if err := s.AddProtocolAddress(nic, own, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: own.AddressWithPrefix.Subnet(), NIC: nic},
		{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(testGateway.As4()), NIC: nic}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- l.receive() }()
	go func() { done <- l.send(ctx) }()
	t.Cleanup(func() {
		cancel()
		near.Close()
		<-done
		<-done
		s.Close()
		s.Wait()
	})
	return s
}

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// dial opens a connection from the guest.
func (w *wire) dial(to netip.AddrPort) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(limit(w.t), w.guest, addressOf(to), ipv4.ProtocolNumber)
}

func (w *wire) dialUDP(to netip.AddrPort) *gonet.UDPConn {
	w.t.Helper()
	remote := addressOf(to)
	c, err := gonet.DialUDP(w.guest, nil, &remote, ipv4.ProtocolNumber)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// listen returns a listener of the host's loopback, with its address as the guest sees it.
func listen(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, netip.AddrPortFrom(testGateway, l.Addr().(*net.TCPAddr).AddrPort().Port())
}

// echoUDP answers datagrams of the host's loopback with what make returns.
func echoUDP(t *testing.T, answer func([]byte) []byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if a := answer(b[:n]); a != nil {
				_, _ = c.WriteTo(a, from)
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// file returns a socket as it is handed over.
func file(t *testing.T, s interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := s.File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}
