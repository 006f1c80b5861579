package vswitch

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/grailos/grail/ring/virtionet"
)

// payloadOf checks a UDP frame with a foreign library and returns its payload.
func payloadOf(t *testing.T, f []byte, srcIP, dstIP netip.Addr, sp, dp int) []byte {
	t.Helper()
	p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default)
	u, _ := p.TransportLayer().(*layers.UDP)
	if u == nil {
		t.Fatalf("no UDP in %s", p)
	}
	if err := u.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
		t.Fatal(err)
	}
	if err, bad := p.VerifyChecksums(); err != nil || len(bad) > 0 {
		t.Fatalf("%v, %v\n%s", err, bad, p)
	}
	ip := p.NetworkLayer().(*layers.IPv4)
	if !ip.SrcIP.Equal(srcIP.AsSlice()) || !ip.DstIP.Equal(dstIP.AsSlice()) || int(u.SrcPort) != sp || int(u.DstPort) != dp {
		t.Fatalf("%s", p)
	}
	return u.Payload
}

func TestARP(t *testing.T) {
	up := &fakeUplink{}
	a, b, c := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{}), newVM(t, 3, portAt(3, 1), vmOptions{})
	s := newBed(t, up, a, b, c)
	ip := number(a.cfg.Addr.Addr().As4())
	ask := func(target netip.Addr, sender uint32) []got {
		f := putARP(make([]byte, 64), arp{op: 1, sender: a.cfg.MAC.key(), senderIP: sender, targetIP: number(target.As4())}, broadcast)
		a.send(f)
		s.run()
		return a.recv()
	}
	for target, want := range map[netip.Addr]MAC{
		b.cfg.Addr.Addr(): b.cfg.MAC, a.cfg.Service: ServiceMAC, a.cfg.Gateway: a.cfg.GatewayMAC,
	} {
		g := ask(target, ip)
		if len(g) != 1 {
			t.Fatalf("%s: %d answers", target, len(g))
		}
		p := gopacket.NewPacket(g[0].b, layers.LayerTypeEthernet, gopacket.Default)
		l, _ := p.Layer(layers.LayerTypeARP).(*layers.ARP)
		if l == nil || l.Operation != 2 || MAC(l.SourceHwAddress) != want || !net.IP(l.SourceProtAddress).Equal(target.AsSlice()) ||
			MAC(l.DstHwAddress) != a.cfg.MAC {
			t.Errorf("%s: %s", target, p)
		}
		if len(b.recv())+len(c.recv())+len(up.out) != 0 {
			t.Errorf("%s: others saw it", target)
		}
	}
	if len(ask(c.cfg.Addr.Addr(), ip)) != 0 || len(up.out) != 0 || s.drops(a, DropTenant) != 1 {
		t.Error("another tenant's address was asked for")
	}
	if len(ask(a.cfg.Addr.Addr(), 0)) != 0 || len(b.recv()) != 0 || len(up.out) != 0 {
		t.Error("a probe for its own address was answered")
	}
	if ask(a.cfg.Addr.Addr(), ip); len(b.recv()) != 1 || len(up.out) != 1 {
		t.Error("an announcement did not get around")
	}
	up.out = nil
	if ask(netip.MustParseAddr("10.0.9.9"), ip); len(b.recv()) != 1 || len(up.out) != 1 {
		t.Error("a request for an unknown address did not get around")
	}
	up.out = nil
	// From the uplink.
	up.push(virtionet.Header{}, putARP(make([]byte, 64), arp{op: 1, sender: 0x020000aa, senderIP: 0x01020304, targetIP: ip}, broadcast))
	s.run()
	if len(up.out) != 1 || len(a.recv()) != 0 {
		t.Fatalf("%d answers", len(up.out))
	}
	p := gopacket.NewPacket(up.out[0].b, layers.LayerTypeEthernet, gopacket.Default)
	if l, _ := p.Layer(layers.LayerTypeARP).(*layers.ARP); l == nil || MAC(l.SourceHwAddress) != a.cfg.MAC {
		t.Errorf("%s", p)
	}
}

func TestDHCP(t *testing.T) {
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
	s := newBed(t, &fakeUplink{}, a, b)
	ask := func(mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		t.Helper()
		m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(a.cfg.MAC[:])}, mods...)...)
		if err != nil {
			t.Fatal(err)
		}
		src := netip.IPv4Unspecified()
		if !m.ClientIPAddr.IsUnspecified() {
			src = a.cfg.Addr.Addr()
		}
		a.send(udp(bcast, a.cfg.MAC, src, limitedBroadcast, 68, 67, m.ToBytes()))
		s.run()
		if len(b.recv()) != 0 {
			t.Error("another port saw the request")
		}
		g := a.recv()
		if len(g) == 0 {
			return nil
		}
		dst := a.cfg.Addr.Addr()
		if MAC(g[0].b[:6]) == bcast {
			dst = limitedBroadcast
		}
		r, err := dhcpv4.FromBytes(payloadOf(t, g[0].b, a.cfg.Service, dst, 67, 68))
		if err != nil || r.TransactionID != m.TransactionID {
			t.Fatalf("%v, %v", r, err)
		}
		return r
	}
	ip, server := a.cfg.Addr.Addr().AsSlice(), a.cfg.Service.AsSlice()
	check := func(r *dhcpv4.DHCPv4, want dhcpv4.MessageType) {
		t.Helper()
		if r == nil || r.MessageType() != want {
			t.Fatalf("want %s, got %v", want, r)
		}
		if want == dhcpv4.MessageTypeNak {
			return
		}
		ones, _ := r.SubnetMask().Size()
		if ones != 16 || len(r.Router()) != 1 || !r.Router()[0].Equal(a.cfg.Gateway.AsSlice()) ||
			len(r.DNS()) != 1 || !r.DNS()[0].Equal(server) || !r.ServerIdentifier().Equal(server) || r.HostName() != a.cfg.Name || r.DomainName() != "grail" {
			t.Errorf("%s", r.Summary())
		}
	}
	r := ask(dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	check(r, dhcpv4.MessageTypeOffer)
	if !r.YourIPAddr.Equal(ip) || r.IPAddressLeaseTime(0) != leaseTime {
		t.Errorf("%s", r.Summary())
	}
	check(ask(dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithBroadcast(true)), dhcpv4.MessageTypeOffer)
	check(ask(dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server))), dhcpv4.MessageTypeAck)
	check(ask(dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(ip)), dhcpv4.MessageTypeAck)
	check(ask(dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 0, 0, 9)))), dhcpv4.MessageTypeNak)
	check(ask(dhcpv4.WithMessageType(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(ip)), dhcpv4.MessageTypeAck)
	for name, mods := range map[string][]dhcpv4.Modifier{
		"another server": {dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(1, 2, 3, 4)))},
		"release":        {dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease)},
		"another's MAC":  {dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(b.cfg.MAC[:])},
		"no type":        {},
	} {
		if r := ask(mods...); r != nil {
			t.Errorf("%s: %s", name, r.Summary())
		}
	}
	// Many requests at once are too many.
	m, _ := dhcpv4.New(dhcpv4.WithHwAddr(a.cfg.MAC[:]), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	for range 2 * serviceBurst {
		a.send(udp(bcast, a.cfg.MAC, netip.IPv4Unspecified(), limitedBroadcast, 68, 67, m.ToBytes()))
		s.Round()
		a.recv()
	}
	if s.Served > serviceBurst+40 {
		t.Errorf("%d served", s.Served)
	}
}

func TestDNS(t *testing.T) {
	up := &fakeUplink{}
	a, b, c := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{}), newVM(t, 3, portAt(3, 1), vmOptions{})
	s := newBed(t, up, a, b, c)
	if err := s.SetNames(0, map[string]netip.Addr{"Web": netip.MustParseAddr("10.0.7.7")}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []map[string]netip.Addr{{"a b": netip.MustParseAddr("1.2.3.4")}, {"x": netip.MustParseAddr("::1")}, {"x": {}}} {
		if s.SetNames(0, bad) == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	query := func(name string, typ dnsmessage.Type) []byte {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: 77, RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}}}
		q, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	send := func(q []byte) {
		a.send(udp(ServiceMAC, a.cfg.MAC, a.cfg.Addr.Addr(), a.cfg.Service, 4444, 53, q))
		s.run()
	}
	answer := func() *dnsmessage.Message {
		t.Helper()
		g := a.recv()
		if len(g) == 0 {
			return nil
		}
		var m dnsmessage.Message
		if err := m.Unpack(payloadOf(t, g[0].b, a.cfg.Service, a.cfg.Addr.Addr(), 53, 4444)); err != nil {
			t.Fatal(err)
		}
		if m.ID != 77 || !m.Response {
			t.Errorf("%+v", m)
		}
		return &m
	}
	for _, x := range []struct {
		name string
		typ  dnsmessage.Type
		code dnsmessage.RCode
		ip   string
	}{
		{"vmc.", dnsmessage.TypeA, 0, "10.0.0.2"}, {"VMC.grail.", dnsmessage.TypeA, 0, "10.0.0.2"},
		{"web.Grail.", dnsmessage.TypeA, 0, "10.0.7.7"}, {"web.", dnsmessage.TypeAAAA, 0, ""},
		{"vmd.", dnsmessage.TypeA, dnsmessage.RCodeNameError, ""}, // of another tenant
		{"nobody.grail.", dnsmessage.TypeA, dnsmessage.RCodeNameError, ""},
	} {
		send(query(x.name, x.typ))
		m := answer()
		if m == nil || m.RCode != x.code || (len(m.Answers) == 1) != (x.ip != "") || len(m.Questions) != 1 {
			t.Fatalf("%s: %+v", x.name, m)
		}
		if x.ip != "" {
			if r := m.Answers[0].Body.(*dnsmessage.AResource); netip.AddrFrom4(r.A).String() != x.ip {
				t.Errorf("%s: %v", x.name, r)
			}
		}
	}
	// Others go to the upstream server, in the VM's name, and come back in the switch's.
	send(query("example.com.", dnsmessage.TypeA))
	if answer() != nil || len(up.out) != 1 {
		t.Fatalf("%d at the uplink", len(up.out))
	}
	if q := payloadOf(t, up.out[0].b, a.cfg.Addr.Addr(), a.cfg.Upstream, 4444, 53); !bytes.Equal(q, query("example.com.", dnsmessage.TypeA)) {
		t.Errorf("% x", q)
	}
	if MAC(up.out[0].b[:6]) != a.cfg.GatewayMAC || MAC(up.out[0].b[6:12]) != a.cfg.MAC {
		t.Errorf("% x", up.out[0].b[:12])
	}
	r := dnsmessage.Message{Header: dnsmessage.Header{ID: 77, Response: true}}
	rb, _ := r.Pack()
	reply := udp(a.cfg.MAC, a.cfg.GatewayMAC, a.cfg.Upstream, a.cfg.Addr.Addr(), 53, 4444, rb)
	up.push(virtionet.Header{}, reply)
	s.run()
	if m := answer(); m == nil {
		t.Error("no answer")
	}
	// A second one was not asked for: it is an ordinary frame.
	up.push(virtionet.Header{}, reply)
	s.run()
	if g := a.recv(); len(g) != 1 || !bytes.Equal(g[0].b, reply) {
		t.Error("an answer that nobody asked for was changed")
	}
	// Without an upstream server it is a failure.
	s.Detach(1)
	a.cfg.Upstream = netip.Addr{}
	a = newVM(t, 1, a.cfg, vmOptions{})
	s.attach(a)
	send(query("example.com.", dnsmessage.TypeA))
	if m := answer(); m == nil || m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("%+v", m)
	}
	// Nonsense.
	send([]byte{1, 2, 3})
	if answer() != nil || s.drops(a, DropService) != 1 {
		t.Error("nonsense was answered")
	}
	two := dnsmessage.Message{Header: dnsmessage.Header{ID: 77}, Questions: make([]dnsmessage.Question, 2)}
	for i := range two.Questions {
		two.Questions[i] = dnsmessage.Question{Name: dnsmessage.MustNewName("web."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	}
	q, _ := two.Pack()
	send(q)
	if m := answer(); m == nil || m.RCode != dnsmessage.RCodeFormatError {
		t.Errorf("%+v", m)
	}
}

func TestPing(t *testing.T) {
	a := newVM(t, 1, portAt(1, 0), vmOptions{})
	s := newBed(t, nil, a)
	e := layers.Ethernet{SrcMAC: a.cfg.MAC[:], DstMAC: ServiceMAC[:], EthernetType: layers.EthernetTypeIPv4}
	ip := layers.IPv4{Version: 4, IHL: 5, TTL: 9, Protocol: layers.IPProtocolICMPv4, SrcIP: a.cfg.Addr.Addr().AsSlice(), DstIP: a.cfg.Service.AsSlice()}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, &e, &ip,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 3, Seq: 4}, gopacket.Payload(bytes.Repeat([]byte("grail"), 100)))
	if err != nil {
		t.Fatal(err)
	}
	a.send(buf.Bytes())
	s.run()
	g := a.recv()
	if len(g) != 1 {
		t.Fatalf("%d answers", len(g))
	}
	p := gopacket.NewPacket(g[0].b, layers.LayerTypeEthernet, gopacket.Default)
	if err, bad := p.VerifyChecksums(); err != nil || len(bad) > 0 {
		t.Fatalf("%v, %v", err, bad)
	}
	l, _ := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if l == nil || l.TypeCode.Type() != 0 || l.Seq != 4 || len(l.Payload) != 500 {
		t.Errorf("%s", p)
	}
}
