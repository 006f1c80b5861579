package vswitch

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
	"github.com/grailos/grail/ring/virtionet"
)

// TestOffences: a client that breaks its ring's rules is no longer served, and the others are.
func TestOffences(t *testing.T) {
	for _, queue := range []int{0, 1} {
		for _, o := range ringtest.DriverOffences(1 << 20) {
			t.Run(o.Name, func(t *testing.T) {
				a, b := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
				l, _ := ring.LayoutOf(16)
				bytes := sharedMemory(t, 2<<20)
				mem, err := ring.NewMemory(ring.Region{Base: 1 << 20, Mem: bytes[:4096]}, ring.Region{Base: 4 << 20, Mem: bytes[1<<20:]})
				if err != nil {
					t.Fatal(err)
				}
				q := [2]ring.Queue{l.At(4<<20, baseFeatures), l.At(4<<20+8192, baseFeatures)}
				evil := Client{ID: 3, Config: portAt(3, 0), Features: baseFeatures, Memory: mem, Queues: []Queue{
					{Queue: q[0], Kick: ring.DoorbellOf(-1), Call: ring.DoorbellOf(-1)}, {Queue: q[1], Kick: ring.DoorbellOf(-1), Call: ring.DoorbellOf(-1)}}}
				s := newBed(t, nil, a, b)
				if err := s.Attach(evil); err != nil {
					t.Fatal(err)
				}
				o.Do(ringtest.NewRaw(mem, q[queue]))
				f := between(a, b, "to the good one")
				a.send(f)
				evilFrame := between(a, b, "to the evil one")
				copy(evilFrame, mac(3).bytes())
				a.send(evilFrame)
				s.run()
				s.time += holdFor + 1
				s.run()
				if len(b.recv()) != 1 {
					t.Error("the good ones are not served")
				}
				if len(s.Deaths) != 1 || s.Deaths[0].ID != 3 {
					t.Errorf("%+v", s.Deaths)
				}
				if a.reapTx(0); a.tx[0].Outstanding() != 0 {
					t.Error("the sender's buffers were not given back")
				}
				s.Detach(3)
			})
		}
	}
}

func (m MAC) bytes() []byte { return m[:] }

// TestBadBuffers: receive buffers that are none end the client that offers them.
func TestBadBuffers(t *testing.T) {
	for name, segs := range map[string][2][]ring.Segment{
		"not writable": {{{Addr: 1 << 16, Len: 2000}}, nil},
		"mixed":        {{{Addr: 1 << 16, Len: 1}}, {{Addr: 1 << 16, Len: 2000}}},
		"11 bytes":     {nil, {{Addr: 1 << 16, Len: 11}}},
	} {
		a, b := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
		d, err := ring.NewDriver(b.mem, ring.DriverConfig{Queue: b.rings[0]})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Add(segs[0], segs[1], 0); err != nil {
			t.Fatal(err)
		}
		d.Publish()
		s := newBed(t, nil, a, b)
		a.send(between(a, b, "x"))
		s.run()
		if len(s.Deaths) != 1 || s.Deaths[0].ID != 2 {
			t.Errorf("%s: %+v", name, s.Deaths)
		}
	}
	// A transmit chain with writable memory.
	a := newVM(t, 1, portAt(1, 0), vmOptions{})
	s := newBed(t, nil, a)
	a.tx[0].Add(nil, []ring.Segment{{Addr: 1 << 16, Len: 100}}, 0)
	a.tx[0].Publish()
	s.run()
	if len(s.Deaths) != 1 {
		t.Errorf("%+v", s.Deaths)
	}
}

// TestShortChains: frames without a whole header are dropped, and their sender goes on.
func TestShortChains(t *testing.T) {
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
	s := newBed(t, nil, a, b)
	for n := uint32(1); n < 12+14; n++ {
		if err := a.tx[0].Add([]ring.Segment{{Addr: a.out, Len: n}}, nil, 0); err != nil {
			t.Fatal(err)
		}
		a.tx[0].Publish()
		s.run()
		a.reapTx(0)
	}
	if s.drops(a, DropHeader) != 11 || s.drops(a, DropShort) != 14 {
		c, _ := s.Counters(1)
		t.Error(c.Map())
	}
	a.send(between(a, b, "x"))
	s.run()
	if len(b.recv()) != 1 || len(s.Deaths) != 0 {
		t.Error("it is not served any more")
	}
}

// TestChangingHeaders: what was checked is what is delivered, whatever the sender writes meanwhile.
func TestChangingHeaders(t *testing.T) {
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
	s := newBed(t, nil, a, b)
	f := between(a, b, string(bytes.Repeat([]byte{1}, 1000)))
	s.Step = func(p Step) {
		if p == StepTaken {
			for i := range a.bytes[a.out:] {
				a.bytes[a.out:][i] = 0xee
			}
		}
	}
	// The step is before the head is read: then the garbage is refused.
	a.send(f)
	s.run()
	if len(b.recv()) != 0 {
		t.Error("garbage was delivered")
	}
	// A frame that waits has been checked: its head must not change any more.
	s.Step = nil
	for range 64 {
		a.send(f)
		s.Round()
	}
	slot := a.out + uint64(a.slot%int(a.size))*uint64(a.outBytes)
	a.send(f)
	if s.Round(); s.held != 1 {
		t.Fatalf("%d wait", s.held)
	}
	mem := a.bytes[slot+12:][:len(f)]
	for i := range mem {
		mem[i] = 0xee
	}
	b.recv()
	s.Round()
	g := b.recv()
	if len(g) != 1 || !bytes.Equal(g[0].b[:headBytes], f[:headBytes]) {
		t.Errorf("%d frames", len(g))
	}
}

// TestMadClients: rings and buffers scribbled over at random never hurt the switch or a good pair of clients.
func TestMadClients(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	features := []uint64{baseFeatures, allOffloads, baseFeatures | virtionet.FeatureMergeable}
	for range 150 {
		a := newVM(t, 1, portAt(1, 0), vmOptions{})
		b := newVM(t, 2, portAt(2, 0), vmOptions{})
		up := &fakeUplink{}
		s := newBed(t, up, a, b)
		var mad []*vm
		for i := range 3 {
			cfg := portAt(3+i, 0)
			cfg.Unpinned = rng.IntN(2) == 0
			v := newVM(t, uint64(3+i), cfg, vmOptions{features: features[rng.IntN(3)], size: 16, outBytes: 3000})
			mad = append(mad, v)
			s.attach(v)
		}
		sent := 0
		for range 20 {
			for _, v := range mad {
				for range rng.IntN(8) {
					f := between(v, []*vm{a, b, mad[0], mad[1]}[rng.IntN(4)], string(make([]byte, rng.IntN(1400))))
					var h virtionet.Header
					if rng.IntN(2) == 0 {
						h = virtionet.Header{Flags: byte(rng.IntN(4)), GSOType: []byte{0, 1, 4, 0x81}[rng.IntN(4)], GSOSize: uint16(rng.IntN(2000)),
							CsumStart: uint16(rng.IntN(80)), CsumOffset: uint16(rng.IntN(30))}
					}
					ringtest.Scribble(rng, f, rng.IntN(4))
					h.Encode(v.bytes[v.out:])
					n := copy(v.bytes[v.out+12:][:2900], f)
					v.tx[0].Add([]ring.Segment{{Addr: v.out, Len: uint32(12 + n)}}, nil, 0)
					v.tx[0].Publish()
				}
				if rng.IntN(6) == 0 {
					ringtest.Scribble(rng, v.bytes[:v.bufs], 1+rng.IntN(20))
				}
			}
			if rng.IntN(4) == 0 {
				up.push(virtionet.Header{Flags: byte(rng.IntN(4)), GSOType: byte(rng.IntN(6)), GSOSize: uint16(rng.Uint32())}, make([]byte, rng.IntN(3000)))
			}
			a.send(between(a, b, "good"))
			sent++
			s.time += 1e6
			s.up.ready = true
			s.Round()
			s.time += holdFor + 1
			s.Round()
			good := 0
			for _, g := range b.recv() {
				if bytes.HasSuffix(g.b, []byte("good")) && MAC(g.b[6:12]) == a.cfg.MAC {
					good++
				}
			}
			if good != 1 {
				t.Fatalf("%d good frames after %d", good, sent)
			}
			a.recv()
		}
		for _, d := range s.Deaths {
			if d.ID < 3 {
				t.Fatal(d)
			}
		}
		for _, v := range mad {
			s.Detach(v.id)
		}
		if s.held != 0 || len(s.tx) != 2 {
			t.Fatalf("%d wait, %d queues", s.held, len(s.tx))
		}
	}
}
