package vswitch

import (
	"bytes"
	"testing"

	"github.com/grailos/grail/ring/virtionet"
)

// TestQueuePairs: a flow stays on the pair that its sender chose, as far as the receiver has that many.
func TestQueuePairs(t *testing.T) {
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{pairs: 4}), newVM(t, 2, portAt(2, 0), vmOptions{pairs: 2})
	s := newBed(t, nil, a, b)
	for i := range 4 {
		f := between(a, b, string(rune('a'+i)))
		a.sendWith(i, virtionet.Header{}, f, 1<<20)
		s.run()
		for k := range 2 {
			g := b.recvPair(k)
			if want := k == i%2; want != (len(g) == 1 && bytes.Equal(g[0].b, f)) {
				t.Errorf("pair %d: %d frames on pair %d", i, len(g), k)
			}
		}
	}
	for i := range 2 {
		f := between(b, a, string(rune('A'+i)))
		b.sendWith(i, virtionet.Header{}, f, 1<<20)
		s.run()
		if g := a.recvPair(i); len(g) != 1 || !bytes.Equal(g[0].b, f) {
			t.Errorf("pair %d: %d frames", i, len(g))
		}
	}
	if at := s.Detach(1); len(at) != 8 || at[1] != 1 || at[0] != 1 || at[4] != 0 {
		t.Errorf("%v", at)
	}
}

// TestFairness: a client that sends without end does not keep another one waiting for more than a round.
func TestFairness(t *testing.T) {
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{size: 512}), newVM(t, 2, portAt(2, 0), vmOptions{size: 512})
	c, d := newVM(t, 3, portAt(3, 0), vmOptions{}), newVM(t, 4, portAt(4, 0), vmOptions{})
	s := newBed(t, nil, a, b, c, d)
	for range 512 {
		a.send(between(a, b, "much"))
	}
	c.send(between(c, d, "little"))
	s.Round()
	if n := len(b.recv()); n < 1 || n > queueTurn {
		t.Errorf("a round took %d frames of one queue", n)
	}
	if len(d.recv()) != 1 {
		t.Error("the other one was not served")
	}
}

// TestFloodIntoFullReceiver: a receiver without buffers costs a flood nothing.
func TestFloodIntoFullReceiver(t *testing.T) {
	a, b, c := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{size: 2}), newVM(t, 3, portAt(3, 0), vmOptions{})
	s := newBed(t, nil, a, b, c)
	for range 5 {
		a.send(udp(bcast, a.cfg.MAC, a.cfg.Addr.Addr(), limitedBroadcast, 1, 2, nil))
	}
	s.Round()
	if len(c.recv()) != 5 || len(b.recv()) != 2 || s.drops(b, DropRxFull) != 3 || s.held != 0 {
		t.Errorf("%d dropped, %d wait", s.drops(b, DropRxFull), s.held)
	}
}

// TestUplinkFails: an uplink that takes nothing is counted, and its senders go on.
func TestUplinkFails(t *testing.T) {
	up := &fakeUplink{fail: true}
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{size: 128}), newVM(t, 2, portAt(2, 0), vmOptions{})
	s := newBed(t, up, a, b)
	f := between(a, b, "out")
	copy(f, []byte{2, 0xaa, 0, 0, 0, 1})
	f[33] = 99
	for range UplinkBatch + 10 {
		a.send(f)
	}
	s.run()
	if c := s.UplinkCounters(); c.Drops[DropUplink] != UplinkBatch+10 || len(up.out) != 0 {
		t.Errorf("%v", c.Map())
	}
	a.send(between(a, b, "x"))
	s.run()
	if len(b.recv()) != 1 {
		t.Error("not delivered")
	}
	// Offloads that the uplink does not take are done for it.
	up.fail = false
	s2 := newBed(t, up, newVM(t, 1, portAt(1, 0), vmOptions{features: allOffloads}))
	v := newVM(t, 2, portAt(2, 0), vmOptions{features: allOffloads})
	s2.attach(v)
	h, g := largeTCP(v, a, 10000, 1000)
	copy(g, []byte{2, 0xaa, 0, 0, 0, 1})
	g[33] = 99
	// The addresses changed, and with them the pseudo-header's sum.
	var c sum
	c.pseudo(g[14:], protoTCP, len(g)-34)
	g[50], g[51] = byte(c.value()>>8), byte(c.value())
	v.sendWith(0, h, g, 1<<20)
	s2.run()
	if len(up.out) != 10 {
		t.Fatalf("%d segments", len(up.out))
	}
	for _, o := range up.out {
		verify(t, o.b)
	}
}
