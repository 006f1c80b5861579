package vswitch

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/grailos/grail/hv/state"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// successor makes a switch that takes the region over and then serves vms. The two clocks of a switch have nothing to do with those of the
// switch before it, but both tell that elapsed has passed.
func successor(t testing.TB, up Uplink, region []byte, wall *int64, vms ...*vm) (*bed, state.Taken, int) {
	t.Helper()
	b := &bed{t: t, time: rand.Int64N(1e12)}
	start, at := b.time, *wall
	b.Switch = New(Config{Uplink: up, Clock: func() int64 { *wall = at + b.time - start; return b.time }, Wall: func() int64 { return *wall },
		Poll: ring.PollerConfig{MaxSpin: -1}})
	taken, refused, err := b.TakeOver(region)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vms {
		b.attach(v)
	}
	return b, taken, refused
}

const regionBytes = 512 << 10

func newRegion(t testing.TB) ([]byte, *int64) {
	wall := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	return sharedMemory(t, regionBytes), &wall
}

func unpinned(i int) PortConfig {
	c := portAt(i, 0)
	c.Unpinned = true
	return c
}

// TestSuccessorForwardsAtOnce kills a switch and has the first frame to an address that it had learned, behind a port and behind the uplink, go there
// and nowhere else.
func TestSuccessorForwardsAtOnce(t *testing.T) {
	region, wall := newRegion(t)
	up := &fakeUplink{}
	a, b, c := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, unpinned(2), vmOptions{}), newVM(t, 3, unpinned(3), vmOptions{})
	s, taken, _ := successor(t, up, region, wall, a, b, c)
	if taken != (state.Taken{}) {
		t.Fatalf("%+v from an empty region", taken)
	}
	nested, outside := MAC{2, 0x11, 0, 0, 0, 1}, MAC{2, 0x22, 0, 0, 0, 1}
	to := func(dst MAC) []byte {
		return udp(dst, a.cfg.MAC, a.cfg.Addr.Addr(), netip.MustParseAddr("10.0.9.9"), 1, 2, []byte("x"))
	}
	count := func() [3]int { n := [3]int{len(b.recv()), len(c.recv()), len(up.out)}; up.out = nil; return n }
	// Before anything is learned, everybody gets it.
	for _, dst := range []MAC{nested, outside} {
		a.send(to(dst))
		s.run()
		if n := count(); n != [3]int{1, 1, 1} {
			t.Fatalf("%v copies to b, c and the uplink", n)
		}
	}
	b.send(eth(a.cfg.MAC, nested, 0x88b5, make([]byte, 46)))
	up.push(virtionet.Header{}, eth(a.cfg.MAC, outside, 0x88b5, make([]byte, 46)))
	s.run()
	if len(a.recv()) != 2 {
		t.Fatal("the teaching frames are lost")
	}
	before, _ := s.Counters(1)
	if before.Flooded != 4 {
		t.Errorf("%d copies were counted as flooded", before.Flooded)
	}
	for generation := range 3 { // also what a successor took over is for its successor
		s, taken, refused := successor(t, up, region, wall, a, b, c)
		if taken.Items+taken.Records != 2 || refused != 0 {
			t.Fatalf("generation %d: %+v, %d refused", generation, taken, refused)
		}
		a.send(to(nested))
		s.run()
		if n := count(); n != [3]int{1, 0, 0} {
			t.Errorf("generation %d: %v copies to b, c and the uplink of what is behind b", generation, n)
		}
		a.send(to(outside))
		s.run()
		if n := count(); n != [3]int{0, 0, 1} {
			t.Errorf("generation %d: %v copies to b, c and the uplink of what is behind the uplink", generation, n)
		}
		now, _ := s.Counters(1)
		if now.Flooded != before.Flooded || now.TxPackets != before.TxPackets+2 || now.RxPackets != before.RxPackets {
			t.Errorf("generation %d: counters %+v after %+v", generation, now, before)
		}
		if u := s.UplinkCounters(); u.TxPackets != 1 || u.RxPackets != 3+uint64(generation) {
			t.Errorf("generation %d: uplink %+v", generation, u)
		}
		before = now
	}
	// What is too old is not believed.
	*wall += ageLimit + 1
	s, _, _ = successor(t, up, region, wall, a, b, c)
	a.send(to(nested))
	s.run()
	if n := count(); n != [3]int{1, 1, 1} {
		t.Errorf("%v copies to b, c and the uplink of what was learned long ago", n)
	}
}

// TestPortWithoutClient has a port lose its client for a moment, as when a driver is replaced on request, and for long.
func TestPortWithoutClient(t *testing.T) {
	for _, gap := range []int64{absence / 2, absence + 1} {
		for _, crash := range []bool{false, true} {
			region, wall := newRegion(t)
			a, b, c := newVM(t, 1, unpinned(1), vmOptions{}), newVM(t, 2, unpinned(2), vmOptions{}), newVM(t, 3, unpinned(3), vmOptions{})
			s, _, _ := successor(t, nil, region, wall, a, b, c)
			nested := MAC{2, 0x11, 0, 0, 0, 1}
			b.send(eth(a.cfg.MAC, nested, 0x88b5, make([]byte, 46)))
			s.run()
			s.Detach(2)
			s.time += gap
			s.Round()
			if crash {
				s, _, _ = successor(t, nil, region, wall, a, c)
			}
			s.attach(b)
			a.send(eth(nested, a.cfg.MAC, 0x88b5, make([]byte, 46)))
			s.run()
			if n := len(c.recv()); n != 0 != (gap > absence) || len(b.recv()) != 1 {
				t.Errorf("without a client for %v, crash %t: %d copies for another port", time.Duration(gap), crash, n)
			}
			if crash { // and the one after that agrees
				s, _, _ = successor(t, nil, region, wall, a, b, c)
				a.send(eth(nested, a.cfg.MAC, 0x88b5, make([]byte, 46)))
				s.run()
				if n := len(c.recv()); n != 0 != (gap > absence) {
					t.Errorf("gap %v, one crash later: %d copies for another port", time.Duration(gap), n)
				}
			}
		}
	}
}

// TestSuccessorServes renews a lease, resolves a name that the host told the predecessor, and hands over the answer to a query that the predecessor
// passed on.
func TestSuccessorServes(t *testing.T) {
	region, wall := newRegion(t)
	up := &fakeUplink{}
	cfg := portAt(1, 0)
	cfg.GatewayMAC = MAC{}
	a := newVM(t, 1, cfg, vmOptions{})
	s, _, _ := successor(t, up, region, wall, a)
	router := MAC{2, 0xaa, 0, 0, 0, 9}
	gateway := number(cfg.Gateway.As4())
	up.push(virtionet.Header{}, putARP(make([]byte, 64), arp{op: arpReply, sender: router.key(), senderIP: gateway, target: cfg.MAC.key(), targetIP: number(cfg.Addr.Addr().As4())}, cfg.MAC.key()))
	s.run()
	a.recv()
	if err := s.SetNames(0, map[string]netip.Addr{"web": netip.MustParseAddr("10.0.7.7")}); err != nil {
		t.Fatal(err)
	}
	lease := func(s *bed, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		t.Helper()
		m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(cfg.MAC[:])}, mods...)...)
		if err != nil {
			t.Fatal(err)
		}
		a.send(udp(bcast, cfg.MAC, netip.IPv4Unspecified(), limitedBroadcast, 68, 67, m.ToBytes()))
		s.run()
		g := a.recv()
		if len(g) != 1 {
			t.Fatalf("%d answers", len(g))
		}
		r, err := dhcpv4.FromBytes(g[0].b[42:])
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	offer := lease(s, dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	query := func(name string, id uint16) []byte {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return udp(ServiceMAC, cfg.MAC, cfg.Addr.Addr(), cfg.Service, 4444, 53, b)
	}
	a.send(query("example.com.", 77))
	s.run()
	if len(up.out) != 1 {
		t.Fatalf("%d frames at the uplink", len(up.out))
	}
	up.out = nil

	s, taken, refused := successor(t, up, region, wall, a)
	if taken.Records != 4 || refused != 0 { // router, station, names, query
		t.Errorf("%+v, %d refused", taken, refused)
	}
	ack := lease(s, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)))
	if ack.MessageType() != dhcpv4.MessageTypeAck || !ack.YourIPAddr.Equal(offer.YourIPAddr) || !ack.ServerIdentifier().Equal(offer.ServerIdentifier()) ||
		ack.IPAddressLeaseTime(0) != offer.IPAddressLeaseTime(0) {
		t.Errorf("%s after %s", ack.Summary(), offer.Summary())
	}
	reply := dnsmessage.Message{Header: dnsmessage.Header{ID: 77, Response: true}}
	rb, _ := reply.Pack()
	up.push(virtionet.Header{}, udp(cfg.MAC, router, cfg.Upstream, cfg.Addr.Addr(), 53, 4444, rb))
	s.run()
	if g := a.recv(); len(g) != 1 || !bytes.Equal(g[0].b[6:12], ServiceMAC[:]) {
		t.Error("the answer to a query before the crash did not come in the switch's name")
	}
	a.send(query("web.grail.", 78))
	s.run()
	var m dnsmessage.Message
	if g := a.recv(); len(g) != 1 || m.Unpack(g[0].b[42:]) != nil || len(m.Answers) != 1 {
		t.Error("a name that the host told the predecessor is not known")
	}
	a.send(query("example.org.", 79))
	s.run()
	if len(up.out) != 1 || MAC(up.out[0].b[:6]) != router {
		t.Error("the successor does not know where the router is")
	}
}

// TestTooLate takes over a state when there are ports already.
func TestTooLate(t *testing.T) {
	s := newBed(t, nil, newVM(t, 1, portAt(1, 0), vmOptions{}))
	if _, _, err := s.TakeOver(make([]byte, regionBytes)); err == nil {
		t.Error("no error")
	}
	if _, _, err := newBed(t, nil).TakeOver(make([]byte, 100)); err == nil {
		t.Error("no error for 100 bytes")
	}
}

// TestAllThatFits has a switch know as much as it can, so that the journal overflows again and again.
func TestAllThatFits(t *testing.T) {
	region, wall := newRegion(t)
	up := &fakeUplink{}
	cfg := unpinned(1)
	cfg.FloodRate, cfg.FloodBurst = 1e6, 1e6
	a, b := newVM(t, 1, cfg, vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
	s, _, _ := successor(t, up, region, wall, a, b)
	station := func(i int) MAC { return MAC{2, 0x33, 0, 0, byte(i >> 8), byte(i)} }
	for round := range 4 {
		for i := range maxStations + 100 {
			up.push(virtionet.Header{}, eth(b.cfg.MAC, station(i), 0x88b5, make([]byte, 46)))
			if i < 2*maxLearned {
				a.send(eth(b.cfg.MAC, MAC{2, 0x44, 0, 0, byte(round), byte(i)}, 0x88b5, make([]byte, 46)))
			}
			if i%32 == 31 {
				s.run()
				b.recv()
			}
		}
		s.run()
		b.recv()
		s.time += ageLimit / 2
	}
	if i := state.Inspect(region); i.Generation < 2 {
		t.Errorf("%+v: the journal never overflowed", i)
	}
	for range 200 { // of names
		names := map[string]netip.Addr{}
		for i := range 100 {
			names["name"+string(rune('a'+i%26))+string(rune('a'+i/26))+string(rune('a'+rand.IntN(26)))] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		}
		if err := s.SetNames(0, names); err != nil {
			t.Fatal(err)
		}
	}
	s2, _, refused := successor(t, up, region, wall, a, b)
	if len(s2.up.beyond.m) != len(s.up.beyond.m) || s2.ports[1].learned != s.ports[1].learned || refused != 0 || len(s2.tenants[0].names) != len(s.tenants[0].names) {
		t.Errorf("%d of %d stations, %d of %d addresses, %d of %d names, %d refused", len(s2.up.beyond.m), len(s.up.beyond.m),
			s2.ports[1].learned, s.ports[1].learned, len(s2.tenants[0].names), len(s.tenants[0].names), refused)
	}
}

// FuzzTakeOver gives a switch a state with right checksums and any records at all.
func FuzzTakeOver(f *testing.F) {
	seed := func(kind byte, words ...uint64) []byte {
		b := []byte{kind, byte(8 * len(words))}
		for _, w := range words {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		return b
	}
	own := mac(2).key()
	f.Add(seed(recLearned, own, 0x020011000001, 1<<62))
	f.Add(append(seed(recLearned, own, mac(1).key(), 0), seed(recBack, own, 0)...))
	f.Add(append(seed(recQuery, own, 1<<60, 5), seed(recStation, serviceKey, 0)...))
	f.Add(append(seed(recRouter, 0x0a00ff01, multicast), seed(recLeft, own, 1<<63)...))
	f.Add(append([]byte{recNames, 11, 0, 0, 1, 2, 3, 4, 3}, "web"...))
	f.Fuzz(func(t *testing.T, script []byte) {
		region := make([]byte, regionBytes)
		l, _, err := state.Open(region, StateVersion, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, w := range l.Words() {
			if i%50 == 0 && len(script) > 0 {
				l.Words()[i] = w + uint64(script[i%len(script)])*0x0101010101010101
			}
		}
		l.Start(func(state.Put) {})
		for len(script) >= 2 {
			n := min(int(script[1]), len(script)-2)
			l.Append(uint16(script[0]), script[2:2+n])
			script = script[2+n:]
		}
		wall := int64(1e18)
		up := &fakeUplink{}
		a, b := newVM(t, 1, portAt(1, 0), vmOptions{size: 8}), newVM(t, 2, unpinned(2), vmOptions{size: 8})
		s, _, _ := successor(t, up, region, &wall, a, b)
		// Whatever the predecessor thought, a configured address leads to its port.
		for _, v := range [][2]*vm{{a, b}, {b, a}} {
			v[0].send(between(v[0], v[1], "x"))
			s.run()
			if len(v[1].recv()) != 1 {
				t.Fatal("a frame to a port did not arrive")
			}
		}
		if s.ports[2].learned > maxLearned || len(s.up.beyond.m) > maxStations || len(s.up.router) > maxRouters {
			t.Fatal("more is known than may be")
		}
	})
}

// TestStateVersion fails when Counters changes and StateVersion does not: a successor would take one counter for another.
func TestStateVersion(t *testing.T) {
	if n := reflect.TypeFor[Counters]().Size() / 8; StateVersion != 1 || n != 22 {
		t.Errorf("Counters has %d words, and StateVersion is %d: change both, and then this test", n, StateVersion)
	}
}
