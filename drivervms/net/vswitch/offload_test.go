package vswitch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/grailos/grail/ring/virtionet"
)

// largeTCP makes a TCPv4 frame of n bytes from a to b, to be cut into segments of mss bytes of payload.
func largeTCP(a, b *vm, n, mss int) (virtionet.Header, []byte) {
	payload := make([]byte, n-54)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	return tcp(a, b, false, 5, mss, payload, layers.TCP{PSH: true, ACK: true, FIN: true, CWR: true, Seq: 0xfffff000, Window: 100})
}

// tcp makes a TCP frame whose checksum is partial, by a library that shares no code with ours.
func tcp(a, b *vm, v6 bool, words, mss int, payload []byte, t layers.TCP) (virtionet.Header, []byte) {
	e := layers.Ethernet{SrcMAC: a.cfg.MAC[:], DstMAC: b.cfg.MAC[:], EthernetType: layers.EthernetTypeIPv4}
	t.SrcPort, t.DstPort = 1000, 2000
	for range words - 5 {
		t.Options = append(t.Options, layers.TCPOption{OptionType: 1}, layers.TCPOption{OptionType: 1},
			layers.TCPOption{OptionType: 1}, layers.TCPOption{OptionType: 1})
	}
	var ip gopacket.SerializableLayer
	if v6 {
		e.EthernetType = layers.EthernetTypeIPv6
		x, y := a.local(), b.local()
		l := &layers.IPv6{Version: 6, NextHeader: layers.IPProtocolTCP, HopLimit: 9, SrcIP: x.AsSlice(), DstIP: y.AsSlice()}
		t.SetNetworkLayerForChecksum(l)
		ip = l
	} else {
		l := &layers.IPv4{Version: 4, IHL: 5, Id: 0xfffe, TTL: 9, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolTCP,
			SrcIP: a.cfg.Addr.Addr().AsSlice(), DstIP: b.cfg.Addr.Addr().AsSlice()}
		t.SetNetworkLayerForChecksum(l)
		ip = l
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, &e, ip, &t, gopacket.Payload(payload))
	if err != nil {
		panic(err)
	}
	f := append([]byte{}, buf.Bytes()...)
	h := virtionet.Header{Flags: virtionet.NeedsCsum, CsumStart: 34, CsumOffset: 16}
	if v6 {
		h.CsumStart = 54
	}
	// Where the library has put the sum, a driver puts that of the pseudo-header.
	var c sum
	c.pseudo(f[14:], protoTCP, 4*words+len(payload)) // the frame may be padded
	binary.BigEndian.PutUint16(f[h.CsumStart+16:], c.value())
	if mss > 0 {
		h.GSOType, h.GSOSize = virtionet.GSOTCPv4, uint16(mss)
		if v6 {
			h.GSOType = virtionet.GSOTCPv6
		}
		h.HdrLen = h.CsumStart + uint16(4*words)
	}
	return h, f
}

func (v *vm) local() netip.Addr { return netip.AddrFrom16(linkLocal(v.cfg.MAC)) }

// verify parses f with a foreign library, with checksums verified, and returns its TCP layer.
func verify(t *testing.T, f []byte) *layers.TCP {
	t.Helper()
	p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default)
	if p.ErrorLayer() != nil {
		t.Fatal(p.ErrorLayer().Error())
	}
	l, _ := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if l == nil {
		t.Fatalf("no TCP in %s", p)
	}
	if err := l.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
		t.Fatal(err)
	}
	if err, bad := p.VerifyChecksums(); err != nil || len(bad) > 0 {
		t.Fatalf("%v, %v\n%s", err, bad, p)
	}
	return l
}

// TestOffloads: what the receiver takes is passed through, and what it does not take is done for it.
func TestOffloads(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	csum := baseFeatures | virtionet.FeatureGuestCsum
	for _, v6 := range []bool{false, true} {
		for name, features := range map[string]uint64{"none": baseFeatures, "checksum": csum, "all": allOffloads} {
			t.Run(fmt.Sprintf("%s/v6=%t", name, v6), func(t *testing.T) {
				a := newVM(t, 1, portAt(1, 0), vmOptions{features: allOffloads})
				b := newVM(t, 2, portAt(2, 0), vmOptions{features: features, size: 128})
				s := newBed(t, nil, a, b)
				for range 60 {
					words, mss := 5+rng.IntN(11), 600+rng.IntN(800)
					payload := make([]byte, 1+rng.IntN([]int{10, 2000, 60000}[rng.IntN(3)]))
					if rng.IntN(3) == 0 {
						mss = 0
						payload = payload[:1+rng.IntN(1000)%len(payload)]
					}
					for i := range payload {
						payload[i] = byte(rng.Uint32())
					}
					if len(payload) <= mss {
						mss = 0
					}
					if mss == 0 && len(payload) > 1300 {
						payload = payload[:1300]
					}
					h, f := tcp(a, b, v6, words, mss, payload, layers.TCP{PSH: true, ACK: true, FIN: true, CWR: true, Seq: rng.Uint32()})
					if !a.sendWith(0, h, f, 1+max(len(f)/60, rng.IntN(70000))) {
						t.Fatal("no room to send")
					}
					s.run()
					frames := b.recv()
					if name == "all" {
						h.NumBuffers = uint16((len(f) + 12 + 2047) / 2048)
						if len(frames) != 1 || frames[0].h != h || !bytes.Equal(frames[0].b, f) {
							t.Fatalf("%d bytes were not passed through: %d frames %+v", len(f), len(frames), h)
						}
						continue
					}
					checkSegments(t, frames, f, h, payload, name == "checksum")
				}
				for _, v := range []*vm{a, b} {
					if c, _ := s.Counters(v.id); c.Drops != [numReasons]uint64{} {
						t.Error(c.Map())
					}
				}
			})
		}
	}
}

// checkSegments compares frames with the large frame that they were cut from.
func checkSegments(t *testing.T, frames []got, f []byte, h virtionet.Header, payload []byte, partial bool) {
	t.Helper()
	want := 1
	if h.GSOSize > 0 {
		want = (len(payload) + int(h.GSOSize) - 1) / int(h.GSOSize)
	}
	if len(frames) != want {
		t.Fatalf("%d frames, want %d", len(frames), want)
	}
	first := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeTCP).(*layers.TCP)
	var data []byte
	for i, g := range frames {
		if partial {
			if g.h.Flags != virtionet.NeedsCsum || g.h.CsumStart != h.CsumStart || g.h.CsumOffset != 16 {
				t.Fatalf("segment %d: %+v", i, g.h)
			}
			var c sum
			c.add(g.b[g.h.CsumStart:])
			binary.BigEndian.PutUint16(g.b[g.h.CsumStart+16:], ^c.value())
		} else if g.h != (virtionet.Header{NumBuffers: 1}) {
			t.Fatalf("segment %d: %+v", i, g.h)
		}
		l := verify(t, g.b)
		last := i == len(frames)-1
		if l.Seq != first.Seq+uint32(len(data)) || l.FIN != last || l.PSH != last || l.CWR != (i == 0) || !l.ACK {
			t.Fatalf("segment %d: %+v", i, l)
		}
		data = append(data, l.Payload...)
	}
	if !bytes.Equal(data, payload) {
		t.Fatal("payload differs")
	}
}

// TestOffloadRefused: what cannot or may not be done is dropped and counted.
func TestOffloadRefused(t *testing.T) {
	a := newVM(t, 1, portAt(1, 0), vmOptions{features: allOffloads})
	b := newVM(t, 2, portAt(2, 0), vmOptions{size: 256})
	s := newBed(t, nil, a, b)
	h, f := largeTCP(a, b, 20000, 1000)
	for name, c := range map[string]struct {
		change func(h *virtionet.Header, f []byte)
		want   Reason
	}{
		"a byte a segment":              {func(h *virtionet.Header, f []byte) { h.GSOSize = 1 }, DropOffload},
		"no payload a segment":          {func(h *virtionet.Header, f []byte) { h.GSOSize = 0 }, DropHeader},
		"segments beyond the MTU":       {func(h *virtionet.Header, f []byte) { h.GSOSize = 1461 }, DropOversize},
		"v6 in v4":                      {func(h *virtionet.Header, f []byte) { h.GSOType = virtionet.GSOTCPv6 }, DropHeader},
		"UDP":                           {func(h *virtionet.Header, f []byte) { h.GSOType = virtionet.GSOUDP }, DropHeader},
		"not TCP":                       {func(h *virtionet.Header, f []byte) { f[23] = 17 }, DropHeader},
		"fragment":                      {func(h *virtionet.Header, f []byte) { f[20] = 0x20 }, DropHeader},
		"without segmentation":          {func(h *virtionet.Header, f []byte) { h.GSOType = 0 }, DropOversize},
		"without checksum":              {func(h *virtionet.Header, f []byte) { h.Flags = 0 }, DropHeader},
		"checksum over the IP header":   {func(h *virtionet.Header, f []byte) { h.CsumStart = 14 }, DropHeader},
		"checksum beyond the head":      {func(h *virtionet.Header, f []byte) { h.CsumOffset = 5000 }, DropHeader},
		"checksum beyond the frame":     {func(h *virtionet.Header, f []byte) { h.CsumStart = 65535 }, DropHeader},
		"TCP header too long":           {func(h *virtionet.Header, f []byte) { h.CsumStart = 34; f[46] = 0x40 }, DropHeader},
		"flags of the future":           {func(h *virtionet.Header, f []byte) { h.Flags |= 0x10 }, DropHeader},
		"segmentation of the future":    {func(h *virtionet.Header, f []byte) { h.GSOType = 0x42 }, DropHeader},
		"a hint that lies is no matter": {func(h *virtionet.Header, f []byte) { h.HdrLen = 9999 }, Delivered},
	} {
		h, f := h, append([]byte{}, f...)
		c.change(&h, f)
		before := s.drops(a, c.want)
		a.sendWith(0, h, f, 1<<20)
		s.run()
		n := len(b.recv())
		if c.want != Delivered && (n != 0 || s.drops(a, c.want) != before+1) || c.want == Delivered && n == 0 {
			cnt, _ := s.Counters(1)
			t.Errorf("%s: %d delivered, %v", name, n, cnt.Map())
		}
	}
	// A client that did not negotiate offloads may not use them.
	h, f = largeTCP(b, a, 1000, 400)
	b.sendWith(0, h, f, 1<<20)
	h, f = tcp(b, a, false, 5, 0, []byte("x"), layers.TCP{})
	b.sendWith(0, h, f, 1<<20)
	s.run()
	if len(a.recv()) != 0 || s.drops(b, DropHeader) != 2 {
		t.Error("an offload without its feature was let through")
	}
}

func TestChecksumPieces(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 3000 {
		b := make([]byte, rng.IntN(300))
		for i := range b {
			b[i] = byte(rng.Uint32())
			if rng.IntN(3) == 0 {
				b[i] = 0xff
			}
		}
		var want uint32
		for i, x := range b {
			if i%2 == 0 {
				want += uint32(x) << 8
			} else {
				want += uint32(x)
			}
		}
		for want>>16 != 0 {
			want = want>>16 + want&0xffff
		}
		var s sum
		for left := b; len(left) > 0; {
			n := 1 + rng.IntN(len(left))
			s.add(left[:n])
			left = left[n:]
		}
		if got := s.value(); got != uint16(want) && !(got%0xffff == 0 && want%0xffff == 0) {
			t.Fatalf("%#x, want %#x of % x", got, want, b)
		}
	}
}
