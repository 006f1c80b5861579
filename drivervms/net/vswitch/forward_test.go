package vswitch

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/grailos/grail/ring/virtionet"
)

func TestUnicast(t *testing.T) {
	a, b, c := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{}), newVM(t, 3, portAt(3, 0), vmOptions{})
	s := newBed(t, nil, a, b, c)
	for _, n := range []int{0, 1, 100, 300, 1472} {
		for _, piece := range []int{1, 7, 12, 13, 54, 1 << 20} {
			if n/piece > 60 {
				continue
			}
			p := bytes.Repeat([]byte{byte(n), byte(piece), 3}, n)[:n]
			f := between(a, b, string(p))
			if len(f)/piece > 60 {
				continue
			}
			a.sendWith(0, virtionet.Header{}, f, piece)
			s.run()
			got := b.recv()
			if len(got) != 1 || !bytes.Equal(got[0].b, f) || got[0].h != (virtionet.Header{NumBuffers: 1}) {
				t.Fatalf("payload of %d in pieces of %d: %d frames", n, piece, len(got))
			}
			if len(c.recv()) != 0 || len(a.recv()) != 0 {
				t.Fatal("others got it too")
			}
		}
	}
	if a.reapTx(0); a.tx[0].Outstanding() != 0 {
		t.Error("the sender's buffers were not given back")
	}
	cnt, _ := s.Counters(1)
	rx, _ := s.Counters(2)
	if cnt.TxPackets != rx.RxPackets || cnt.TxBytes != rx.RxBytes || cnt.TxPackets == 0 {
		t.Errorf("%+v, %+v", cnt.Map(), rx.Map())
	}
}

func TestBroadcastAndTenants(t *testing.T) {
	up := &fakeUplink{}
	var vms []*vm
	for i := range 6 {
		vms = append(vms, newVM(t, uint64(i+1), portAt(i+1, uint16(i/3)), vmOptions{}))
	}
	s := newBed(t, up, vms...)
	f := udp(bcast, mac(1), portAt(1, 0).Addr.Addr(), limitedBroadcast, 5, 6, []byte("all"))
	vms[0].send(f)
	s.run()
	for i, v := range vms {
		want := 0
		if i == 1 || i == 2 {
			want = 1
		}
		if n := len(v.recv()); n != want {
			t.Errorf("port %d got %d frames", i+1, n)
		}
	}
	if len(up.out) != 1 || !bytes.Equal(up.out[0].b, f) {
		t.Errorf("the uplink got %d frames", len(up.out))
	}
	up.out = nil
	// Another tenant's MAC is not known here: the frame goes to the uplink, and not if its address gives it away.
	vms[0].send(between(vms[0], vms[4], "hello"))
	s.run()
	if len(vms[4].recv()) != 0 || len(up.out) != 0 || s.drops(vms[0], DropTenant) != 1 {
		t.Errorf("to the other tenant: %d at the uplink, %d dropped", len(up.out), s.drops(vms[0], DropTenant))
	}
	// By the router it does not get there either.
	f = between(vms[0], vms[4], "hello")
	copy(f, []byte{2, 0xaa, 0, 0, 0, 1})
	vms[0].send(f)
	s.run()
	if len(up.out) != 0 || s.drops(vms[0], DropTenant) != 2 {
		t.Error("another tenant's address went to the router")
	}
	// The uplink cannot speak with a port's address.
	up.push(virtionet.Header{}, f)
	up.push(virtionet.Header{}, between(vms[0], vms[4], "hello"))
	s.run()
	if c := s.UplinkCounters(); len(vms[4].recv()) != 0 || c.Drops[DropSpoof] != 2 {
		t.Errorf("%v", c.Map())
	}
	// What is nobody's goes to the uplink, and back.
	out := udp(MAC{2, 0xaa, 0, 0, 0, 1}, mac(1), portAt(1, 0).Addr.Addr(), netip.MustParseAddr("1.2.3.4"), 5, 6, []byte("out"))
	vms[0].send(out)
	in := udp(mac(1), MAC{2, 0xaa, 0, 0, 0, 1}, netip.MustParseAddr("1.2.3.4"), portAt(1, 0).Addr.Addr(), 6, 5, []byte("in"))
	up.push(virtionet.Header{}, in)
	s.run()
	if len(up.out) != 1 || !bytes.Equal(up.out[0].b, out) {
		t.Errorf("the uplink got %d frames", len(up.out))
	}
	if g := vms[0].recv(); len(g) != 1 || !bytes.Equal(g[0].b, in) {
		t.Errorf("the port got %d frames", len(g))
	}
}

func TestGuard(t *testing.T) {
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
	s := newBed(t, &fakeUplink{}, a, b)
	ip := a.cfg.Addr.Addr()
	other := netip.MustParseAddr("10.0.0.77")
	v6 := func(src, dst string, next byte, payload []byte) []byte {
		p := make([]byte, 40, 40+len(payload))
		p[0] = 0x60
		binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
		p[6], p[7] = next, 255
		x, y := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
		copy(p[8:], x[:])
		copy(p[24:], y[:])
		return eth(b.cfg.MAC, a.cfg.MAC, etherIPv6, append(p, payload...))
	}
	icmp := func(typ byte, target string) []byte {
		p := make([]byte, 24)
		p[0] = typ
		x := netip.MustParseAddr(target).As16()
		copy(p[8:], x[:])
		return p
	}
	const local = "fe80::ff:fe00:1"
	arpFrame := func(a arp, dst MAC) []byte {
		f := putARP(make([]byte, 64), a, dst.key())
		return append([]byte{}, f...)
	}
	good := between(a, b, "x")
	short := append([]byte{}, good...)
	binary.BigEndian.PutUint16(short[16:], 2000)
	frag := func(f []byte) []byte { // behind a fragment header
		p := append([]byte{f[20], 0, 0, 1, 0, 0, 0, 9}, f[54:]...)
		g := append(append([]byte{}, f[:54]...), p...)
		g[20] = 44
		binary.BigEndian.PutUint16(g[18:], uint16(len(p)))
		return g
	}
	hop := func(f []byte) []byte {
		p := append([]byte{f[20], 0, 1, 4, 0, 0, 0, 0}, f[54:]...)
		g := append(append([]byte{}, f[:54]...), p...)
		g[20] = 0
		binary.BigEndian.PutUint16(g[18:], uint16(len(p)))
		return g
	}
	deep := v6(local, "ff02::1", 0, bytes.Repeat([]byte{0, 0, 1, 4, 0, 0, 0, 0}, 25))
	for _, c := range []struct {
		name string
		f    []byte
		want Reason
	}{
		{"good", good, Delivered},
		{"foreign MAC", udp(b.cfg.MAC, mac(9), ip, other, 1, 2, nil), DropSpoof},
		{"group MAC", udp(b.cfg.MAC, bcast, ip, other, 1, 2, nil), DropSpoof},
		{"foreign address", udp(b.cfg.MAC, a.cfg.MAC, other, b.cfg.Addr.Addr(), 1, 2, nil), DropSpoof},
		{"DHCP server", udp(b.cfg.MAC, a.cfg.MAC, ip, b.cfg.Addr.Addr(), 67, 68, nil), DropServer},
		{"ARP reply", arpFrame(arp{op: 2, sender: a.cfg.MAC.key(), senderIP: number(ip.As4()), target: b.cfg.MAC.key()}, b.cfg.MAC), Delivered},
		{"ARP of another address", arpFrame(arp{op: 2, sender: a.cfg.MAC.key(), senderIP: number(other.As4())}, b.cfg.MAC), DropSpoof},
		{"ARP of another MAC inside", func() []byte {
			f := arpFrame(arp{op: 2, sender: mac(9).key(), senderIP: number(ip.As4())}, b.cfg.MAC)
			copy(f[6:], a.cfg.MAC[:])
			return f
		}(), DropSpoof},
		{"ARP of other protocols", func() []byte {
			f := arpFrame(arp{op: 2, sender: a.cfg.MAC.key(), senderIP: number(ip.As4())}, b.cfg.MAC)
			f[18] = 8
			return f
		}(), DropSpoof},
		{"tagged", eth(b.cfg.MAC, a.cfg.MAC, etherVLAN, make([]byte, 60)), DropTagged},
		{"double tagged", eth(b.cfg.MAC, a.cfg.MAC, etherQinQ, make([]byte, 60)), DropTagged},
		{"other protocol", eth(b.cfg.MAC, a.cfg.MAC, 0x88cc, make([]byte, 60)), DropProtocol},
		{"802.3", eth(b.cfg.MAC, a.cfg.MAC, 40, make([]byte, 60)), DropProtocol},
		{"IP length beyond the frame", short, DropShort},
		{"cut off Ethernet", good[:13], DropShort},
		{"only Ethernet", good[:14], DropShort},
		{"cut off IP", good[:33], DropShort},
		{"cut off UDP", good[:41], DropShort},
		{"too long", append(append([]byte{}, good...), make([]byte, 1500)...), DropOversize},
		{"IPv6", v6(local, "fe80::ff:fe00:2", 17, make([]byte, 8)), Delivered},
		{"IPv6 unspecified", v6("::", "fe80::ff:fe00:2", 58, icmp(135, "fe80::ff:fe00:1")), Delivered},
		{"IPv6 foreign", v6("fe80::ff:fe00:2", "ff02::1", 17, make([]byte, 8)), DropSpoof},
		{"router advertisement", v6(local, "ff02::1", 58, icmp(134, "::")), DropServer},
		{"redirect", v6(local, "ff02::1", 58, icmp(137, "::")), DropServer},
		{"router advertisement behind hop-by-hop", hop(v6(local, "ff02::1", 58, icmp(134, "::"))), DropServer},
		{"router advertisement in a fragment", frag(v6(local, "ff02::1", 58, icmp(134, "::"))), DropServer},
		{"router advertisement in deep waters", deep, DropShort},
		{"neighbour advertisement", v6(local, "ff02::1", 58, icmp(136, local)), Delivered},
		{"neighbour advertisement of another", v6(local, "ff02::1", 58, icmp(136, "fe80::ff:fe00:2")), DropSpoof},
		{"neighbour advertisement cut off", v6(local, "ff02::1", 58, icmp(136, local)[:20]), DropShort},
		{"DHCPv6 server", v6(local, "ff02::1", 17, []byte{2, 35, 2, 34, 0, 8, 0, 0}), DropServer},
		{"to nobody", udp(a.cfg.MAC, a.cfg.MAC, ip, other, 1, 2, nil), DropNowhere},
		{"switch's own MAC", udp(b.cfg.MAC, ServiceMAC, ip, other, 1, 2, nil), DropSpoof},
	} {
		before, _ := s.Counters(1)
		a.send(c.f)
		s.run()
		after, _ := s.Counters(1)
		n := len(b.recv())
		if c.want == Delivered && n != 1 || c.want != Delivered && (n != 0 || after.Drops[c.want] != before.Drops[c.want]+1) {
			t.Errorf("%s: %d delivered, %v, then %v", c.name, n, before.Map(), after.Map())
		}
	}
	if len(s.Deaths) != 0 {
		t.Error(s.Deaths)
	}
}

func TestFloodLimit(t *testing.T) {
	ca := portAt(1, 0)
	ca.FloodRate, ca.FloodBurst = 100, 10
	a, b := newVM(t, 1, ca, vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
	s := newBed(t, nil, a, b)
	f := udp(bcast, a.cfg.MAC, a.cfg.Addr.Addr(), limitedBroadcast, 1, 2, nil)
	total := 0
	for range 30 {
		a.send(f)
		s.Round()
		total += len(b.recv())
	}
	if total != 10 || s.drops(a, DropFlood) != 20 {
		t.Errorf("%d delivered", total)
	}
	s.time += 5e7 // 50 ms: 5 tokens
	total = 0
	for range 30 {
		a.send(f)
		s.Round()
		total += len(b.recv())
	}
	if total != 5 {
		t.Errorf("%d delivered after 50 ms", total)
	}
	// Unicast is not limited.
	for range 30 {
		a.send(between(a, b, "x"))
		s.Round()
		total += len(b.recv())
	}
	if total != 35 {
		t.Errorf("%d delivered", total)
	}
}

func TestLearning(t *testing.T) {
	ca, cb := portAt(1, 0), portAt(2, 0)
	ca.Unpinned, cb.Unpinned = true, true
	a, b, c := newVM(t, 1, ca, vmOptions{}), newVM(t, 2, cb, vmOptions{}), newVM(t, 3, portAt(3, 0), vmOptions{})
	s := newBed(t, nil, a, b, c)
	inner := MAC{2, 9, 9, 9, 9, 9}
	x := eth(inner, c.cfg.MAC, 0x0800, between(c, a, "to inner")[14:])
	c.send(x)
	s.run()
	if len(a.recv()) != 1 || len(b.recv()) != 1 {
		t.Fatal("unknown unicast did not reach the unpinned ports")
	}
	a.send(eth(c.cfg.MAC, inner, 0x88b5, make([]byte, 50)))
	s.run()
	if len(c.recv()) != 1 {
		t.Fatal("not delivered")
	}
	c.send(x)
	s.run()
	if len(a.recv()) != 1 || len(b.recv()) != 0 {
		t.Fatal("not learned")
	}
	// It moves.
	b.send(eth(c.cfg.MAC, inner, 0x88b5, make([]byte, 50)))
	s.run()
	c.send(x)
	s.run()
	if len(a.recv()) != 0 || len(b.recv()) != 1 {
		t.Fatal("did not move")
	}
	c.recv()
	// It ages.
	s.time += ageLimit + 1
	c.send(x)
	s.run()
	if len(a.recv()) != 1 || len(b.recv()) != 1 {
		t.Fatal("did not age")
	}
	// Addresses that are configured cannot be taken.
	for _, f := range [][]byte{
		eth(c.cfg.MAC, b.cfg.MAC, 0x88b5, make([]byte, 50)),
		udp(c.cfg.MAC, inner, c.cfg.Addr.Addr(), a.cfg.Addr.Addr(), 1, 2, nil),
		putARP(make([]byte, 64), arp{op: 2, sender: inner.key(), senderIP: number(c.cfg.Addr.Addr().As4())}, c.cfg.MAC.key()),
	} {
		before := s.drops(a, DropSpoof)
		a.send(f)
		s.run()
		if len(c.recv()) != 0 || s.drops(a, DropSpoof) != before+1 {
			t.Errorf("% x was let through", f)
		}
	}
	// The table is bounded.
	for i := range 1000 {
		a.send(eth(c.cfg.MAC, MAC{2, 8, 0, 0, byte(i >> 8), byte(i)}, 0x88b5, make([]byte, 50)))
		s.run()
		c.recv()
	}
	if n := len(s.table.m); n > 3+2*maxLearned {
		t.Errorf("%d addresses learned", n)
	}
	s.Detach(1)
	s.Detach(2)
	s.Detach(3)
	if len(s.table.m)+len(s.macs)+len(s.addrs)+len(s.tenants)+len(s.tx)+s.held != 0 {
		t.Error("something is left of the ports")
	}
}

func TestFullReceiver(t *testing.T) {
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{size: 4})
	s := newBed(t, nil, a, b)
	for i := range 6 {
		a.send(between(a, b, string(rune('0'+i))))
	}
	s.Round()
	if s.held != 1 {
		t.Fatalf("%d frames wait", s.held)
	}
	var order string
	for range 3 {
		for _, g := range b.recv() {
			order += string(g.b[42:])
		}
		s.Round()
	}
	if order != "012345" || s.held != 0 {
		t.Errorf("order %q, %d wait", order, s.held)
	}
	// A receiver that does nothing is waited for once.
	for i := range 10 {
		a.send(between(a, b, string(rune('a'+i))))
	}
	s.Round()
	s.time += holdFor + 1
	s.Round()
	if s.held != 0 || s.drops(b, DropRxFull) != 6 || s.drops(a, DropRxFull) != 0 {
		t.Errorf("%d wait, %d dropped", s.held, s.drops(b, DropRxFull))
	}
	if len(b.recv()) != 4 {
		t.Error("what had room was lost")
	}
	// It is waited for again once it took something.
	a.send(between(a, b, "x"))
	s.Round()
	if len(b.recv()) != 1 {
		t.Error("not delivered")
	}
	for range 5 {
		a.send(between(a, b, "y"))
	}
	if s.Round(); s.held != 1 {
		t.Errorf("%d wait", s.held)
	}
	// It goes away meanwhile.
	s.Detach(2)
	if s.Round(); s.held != 0 {
		t.Errorf("%d wait", s.held)
	}
	if a.reapTx(0); a.tx[0].Outstanding() != 0 {
		t.Errorf("%d buffers are not given back", a.tx[0].Outstanding())
	}
}

func TestBuffers(t *testing.T) {
	a := newVM(t, 1, portAt(1, 0), vmOptions{})
	small := newVM(t, 2, portAt(2, 0), vmOptions{bufBytes: 100})
	merge := newVM(t, 3, portAt(3, 0), vmOptions{bufBytes: 100, features: baseFeatures | virtionet.FeatureMergeable})
	tiny := newVM(t, 4, portAt(4, 0), vmOptions{bufBytes: 12, features: baseFeatures | virtionet.FeatureMergeable})
	s := newBed(t, nil, a, small, merge, tiny)
	f := between(a, small, "0123456789")
	fill := func(v *vm, n int) []byte { return between(a, v, string(bytes.Repeat([]byte{'x'}, n-42))) }
	for _, c := range []struct {
		v    *vm
		n    int
		bufs int // 0: dropped
	}{
		{small, 88, 1}, {small, 89, 0}, {small, 60, 1}, {merge, 88, 1}, {merge, 89, 2}, {merge, 188, 2}, {merge, 189, 3},
		{merge, 1514, 16}, {merge, 42, 1}, {tiny, 42, 5}, {tiny, 756, 64}, {tiny, 757, 0}, {tiny, 48, 5},
	} {
		f = fill(c.v, c.n)
		a.send(f)
		s.run()
		g := c.v.recv()
		if c.bufs == 0 {
			if len(g) != 0 || s.drops(c.v, DropRxSmall) == 0 {
				t.Errorf("%d bytes: %d frames", c.n, len(g))
			}
			continue
		}
		if len(g) != 1 || int(g[0].h.NumBuffers) != c.bufs || !bytes.Equal(g[0].b, f) {
			t.Errorf("%d bytes: %d frames, want %d buffers", c.n, len(g), c.bufs)
		}
	}
}

func TestAttachErrors(t *testing.T) {
	a := newVM(t, 1, portAt(1, 0), vmOptions{})
	s := newBed(t, nil, a)
	for name, change := range map[string]func(*Client){
		"same ID":        func(c *Client) { c.ID = 1 },
		"same MAC":       func(c *Client) { c.Config.MAC = mac(1) },
		"same address":   func(c *Client) { c.Config.Addr = portAt(1, 0).Addr },
		"no queue":       func(c *Client) { c.Queues = nil },
		"odd queues":     func(c *Client) { c.Queues = c.Queues[:1] },
		"legacy":         func(c *Client) { c.Features = 0 },
		"group MAC":      func(c *Client) { c.Config.MAC = bcast },
		"no MAC":         func(c *Client) { c.Config.MAC = MAC{} },
		"MTU":            func(c *Client) { c.Config.MTU = 100 },
		"name":           func(c *Client) { c.Config.Name = "a b" },
		"address":        func(c *Client) { c.Config.Addr = netip.MustParsePrefix("::1/64") },
		"no prefix":      func(c *Client) { c.Config.Addr = netip.MustParsePrefix("10.0.0.9/0") },
		"service":        func(c *Client) { c.Config.Service = c.Config.Gateway },
		"ring outside":   func(c *Client) { c.Queues[1].Used = 1 << 40 },
		"ring unaligned": func(c *Client) { c.Queues[1].Desc++ },
	} {
		c := newVM(t, 2, portAt(2, 0), vmOptions{}).client()
		change(&c)
		if err := s.Attach(c); err == nil {
			t.Errorf("%s: attached", name)
		}
	}
	s.attach(newVM(t, 2, portAt(2, 0), vmOptions{}))
}

// TestForgery: ports that are less tied down than others still cannot take what is others'.
func TestForgery(t *testing.T) {
	free, bare := portAt(1, 0), portAt(2, 0)
	free.Unpinned = true
	bare.Addr = netip.Prefix{}
	six, far := portAt(3, 0), portAt(4, 1)
	six.Addr6, far.Addr6 = netip.MustParseAddr("fd00::3"), netip.MustParseAddr("fd00::4")
	a, b := newVM(t, 1, free, vmOptions{}), newVM(t, 2, bare, vmOptions{})
	c, d := newVM(t, 3, six, vmOptions{}), newVM(t, 4, far, vmOptions{})
	up := &fakeUplink{}
	s := newBed(t, up, a, b, c, d)
	v6 := func(dst, src MAC, from, to string) []byte {
		p := make([]byte, 48)
		p[0], p[5], p[6], p[7] = 0x60, 8, 17, 9
		x, y := netip.MustParseAddr(from).As16(), netip.MustParseAddr(to).As16()
		copy(p[8:], x[:])
		copy(p[24:], y[:])
		return eth(dst, src, etherIPv6, p)
	}
	say := func(v *vm, ip netip.Addr) []byte {
		return putARP(make([]byte, 64), arp{op: 2, sender: v.cfg.MAC.key(), senderIP: number(ip.As4())}, c.cfg.MAC.key())
	}
	for name, x := range map[string]struct {
		v    *vm
		f    []byte
		want Reason
	}{
		"unpinned as a peer":             {a, udp(c.cfg.MAC, a.cfg.MAC, c.cfg.Addr.Addr(), c.cfg.Addr.Addr(), 1, 2, nil), DropSpoof},
		"unpinned as the gateway":        {a, udp(c.cfg.MAC, a.cfg.MAC, c.cfg.Gateway, c.cfg.Addr.Addr(), 1, 2, nil), DropSpoof},
		"unpinned as the gateway's MAC":  {a, eth(c.cfg.MAC, c.cfg.GatewayMAC, 0x88b5, make([]byte, 50)), DropSpoof},
		"unpinned as the gateway in ARP": {a, say(a, c.cfg.Gateway), DropSpoof},
		"unpinned as the switch in ARP":  {a, say(a, c.cfg.Service), DropSpoof},
		"unpinned as a peer of IPv6":     {a, v6(c.cfg.MAC, a.cfg.MAC, "fd00::3", "fd00::9"), DropSpoof},
		"bare as a peer":                 {b, udp(c.cfg.MAC, b.cfg.MAC, c.cfg.Addr.Addr(), c.cfg.Addr.Addr(), 1, 2, nil), DropSpoof},
		"bare as another tenant":         {b, say(b, d.cfg.Addr.Addr()), DropSpoof},
		"bare as itself":                 {b, say(b, netip.MustParseAddr("10.0.9.9")), Delivered},
		"bare as a DHCP server":          {b, udp(c.cfg.MAC, b.cfg.MAC, netip.MustParseAddr("10.0.9.9"), c.cfg.Addr.Addr(), 67, 68, nil), DropServer},
		"own IPv6":                       {c, v6(MAC{2, 0xaa, 0, 0, 0, 1}, c.cfg.MAC, "fd00::3", "2000::1"), Delivered},
		"another tenant's IPv6":          {c, v6(MAC{2, 0xaa, 0, 0, 0, 1}, c.cfg.MAC, "fd00::3", "fd00::4"), DropTenant},
	} {
		before, _ := s.Counters(x.v.id)
		x.v.send(x.f)
		s.run()
		after, _ := s.Counters(x.v.id)
		n := len(c.recv()) + len(d.recv()) + len(up.out)
		up.out = nil
		if (n > 0) != (x.want == Delivered) || x.want != Delivered && after.Drops[x.want] != before.Drops[x.want]+1 {
			t.Errorf("%s: %d delivered, %v", name, n, after.Map())
		}
	}
	up.push(virtionet.Header{}, v6(c.cfg.MAC, MAC{2, 0xaa, 0, 0, 0, 1}, "fd00::4", "fd00::3"))
	s.run()
	if len(c.recv()) != 0 {
		t.Error("the uplink spoke in a port's name")
	}
}
