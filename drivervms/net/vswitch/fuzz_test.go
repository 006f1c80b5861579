package vswitch

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/grailos/grail/ring/virtionet"
)

// FuzzForward: whatever a pinned client sends, others get only frames that it may send, in a form that they take.
func FuzzForward(f *testing.F) {
	mk := func() (a, b, c *vm) {
		a = newVM(f, 1, portAt(1, 0), vmOptions{features: allOffloads, size: 8})
		b = newVM(f, 2, portAt(2, 0), vmOptions{size: 128})
		c = newVM(f, 3, portAt(3, 1), vmOptions{features: allOffloads, size: 64})
		return a, b, c
	}
	a, b, c := mk()
	add := func(h virtionet.Header, frame []byte) {
		w := make([]byte, virtionet.HeaderBytes)
		h.Encode(w)
		f.Add(append(w, frame...), uint16(0))
		f.Add(append(w, frame...), uint16(33))
	}
	add(virtionet.Header{}, between(a, b, "hello"))
	add(virtionet.Header{}, putARP(make([]byte, 64), arp{op: 1, sender: a.cfg.MAC.key(), senderIP: 0x0a000001, targetIP: 0x0a000002}, broadcast))
	add(largeTCP(a, b, 5000, 1000))
	add(tcp(a, b, true, 9, 700, make([]byte, 4000), layers.TCP{}))
	m, _ := dhcpv4.New(dhcpv4.WithHwAddr(a.cfg.MAC[:]), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	add(virtionet.Header{}, udp(bcast, a.cfg.MAC, netip.IPv4Unspecified(), limitedBroadcast, 68, 67, m.ToBytes()))
	add(virtionet.Header{}, udp(ServiceMAC, a.cfg.MAC, a.cfg.Addr.Addr(), a.cfg.Service, 4444, 53, dnsQuery("vmc.")))
	up := &fakeUplink{}
	s := newBed(f, up, a, b, c)
	own := number(a.cfg.Addr.Addr().As4())
	f.Fuzz(func(t *testing.T, raw []byte, piece uint16) {
		if len(raw) < virtionet.HeaderBytes || len(raw) > 60000 {
			return
		}
		s.time += 1e9
		size := len(raw)
		if piece > 0 {
			size = max(int(piece), len(raw)/7+1)
		}
		a.sendWith(0, virtionet.DecodeHeader(raw), raw[virtionet.HeaderBytes:], size)
		s.run()
		a.recv()
		if n := len(c.recv()); n != 0 {
			t.Fatalf("%d frames to another tenant", n)
		}
		check := func(g got) {
			if len(g.b) < ethHeader || MAC(g.b[6:12]) != a.cfg.MAC {
				t.Fatalf("% x", g.b)
			}
			if binary.BigEndian.Uint16(g.b[12:]) == etherIPv4 {
				if src := binary.BigEndian.Uint32(g.b[26:]); src != own && src != 0 {
					t.Fatalf("from %#x", src)
				}
			}
		}
		for _, g := range b.recv() {
			check(g)
			if g.h != (virtionet.Header{NumBuffers: 1}) || len(g.b) > 1514 {
				t.Fatalf("%+v, %d bytes", g.h, len(g.b))
			}
		}
		for _, g := range up.out {
			check(g)
		}
		up.out = nil
		if len(s.Deaths) != 0 {
			t.Fatal(s.Deaths)
		}
		if a.reapTx(0); a.tx[0].Outstanding() != 0 {
			t.Fatal("a buffer is missing")
		}
	})
}

// FuzzUplink: whatever comes from outside, clients get frames that they take, and none in the name of one of them.
func FuzzUplink(f *testing.F) {
	a := newVM(f, 1, portAt(1, 0), vmOptions{features: allOffloads, size: 64})
	b := newVM(f, 2, portAt(2, 0), vmOptions{size: 128})
	up := &fakeUplink{}
	s := newBed(f, up, a, b)
	for _, v := range []*vm{a, b} {
		h, frame := largeTCP(a, v, 4000, 1000)
		copy(frame[6:], v.cfg.GatewayMAC[:])
		copy(frame[26:], []byte{9, 9, 9, 9})
		up.push(h, frame)
		up.push(virtionet.Header{}, udp(v.cfg.MAC, v.cfg.GatewayMAC, v.cfg.Upstream, v.cfg.Addr.Addr(), 53, 4444, dnsQuery("x.")))
		up.push(virtionet.Header{}, putARP(make([]byte, 64), arp{op: 1, sender: 2, senderIP: 3, targetIP: number(v.cfg.Addr.Addr().As4())}, broadcast))
	}
	for _, b := range up.in {
		f.Add(b)
	}
	up.in = nil
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 60000 {
			return
		}
		s.time += 1e9
		up.in = append(up.in, raw)
		s.run()
		a.recv()
		for _, g := range b.recv() {
			if g.h != (virtionet.Header{NumBuffers: 1}) || len(g.b) > 1514 || MAC(g.b[6:12]) == a.cfg.MAC {
				t.Fatalf("%+v, %d bytes", g.h, len(g.b))
			}
		}
		up.out = nil
		if len(s.Deaths) != 0 {
			t.Fatal(s.Deaths)
		}
	})
}

// FuzzDHCP: an answer is one that the library can read, for the port's own address.
func FuzzDHCP(f *testing.F) {
	c := portAt(1, 0).withDefaults()
	for _, k := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform, dhcpv4.MessageTypeDecline} {
		m, err := dhcpv4.New(dhcpv4.WithHwAddr(c.MAC[:]), dhcpv4.WithMessageType(k), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(c.Addr.Addr().AsSlice())))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.ToBytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		answer := dhcpAnswer(&c, b)
		if answer == nil {
			return
		}
		m, err := dhcpv4.FromBytes(answer)
		if err != nil {
			t.Fatal(err)
		}
		if ip := m.YourIPAddr; !ip.IsUnspecified() && !ip.Equal(c.Addr.Addr().AsSlice()) {
			t.Fatalf("lease of %s", ip)
		}
	})
}

func dnsQuery(name string) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 1}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// FuzzDNS: an answer is one that the library can read, and bounded.
func FuzzDNS(f *testing.F) {
	tn := &tenant{names: map[string]uint32{"web": 0x0a000001}}
	for _, n := range []string{"web.", "web.grail.", "nobody.", "example.com.", "."} {
		f.Add(dnsQuery(n))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		answer, pass := dnsAnswer(tn, "grail", b)
		if pass {
			answer = dnsFailure(b)
		}
		if answer == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(answer); err != nil || !m.Response || len(answer) > 1000 {
			t.Fatalf("%v: %d bytes", err, len(answer))
		}
	})
}
