package ring_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
)

func TestHostileDriver(t *testing.T) {
	for _, size := range []uint16{4, 256} {
		b := newBed(t, size, ring.FeatureIndirect, 0, 0, true)
		for _, o := range ringtest.DriverOffences(b.data) {
			t.Run(o.Name, func(t *testing.T) {
				b := newBed(t, size, ring.FeatureIndirect, 0, 0, true)
				o.Do(ringtest.NewRaw(b.m, b.q))
				var c ring.Chain
				ok, err := b.dev.Pop(&c)
				if ok { // the first request was fine, the second is not
					ok, err = b.dev.Pop(&c)
				}
				if ok || !errors.Is(err, o.Want) {
					t.Fatalf("Pop: %v %v, want %v", ok, err, o.Want)
				}
				if _, again := b.dev.Pop(&c); again != err || b.dev.Err() != err {
					t.Errorf("the offence is forgotten: %v, %v", again, b.dev.Err())
				}
				if b.dev.Pending() || !b.dev.Arm() || b.dev.Publish() {
					t.Error("a dead queue has work")
				}
				if len(c.Readable)+len(c.Writable) > ring.DefaultMaxSegments {
					t.Errorf("chain of %d segments", len(c.Readable)+len(c.Writable))
				}
			})
		}
	}
}

// TestIndirectNotNegotiated checks §2.7.5.3.1: without the feature the flag is an offence.
func TestIndirectNotNegotiated(t *testing.T) {
	b := newBed(t, 4, 0, 0, 0, false)
	r := ringtest.NewRaw(b.m, b.q)
	r.SetTable(b.data, ringtest.Desc{Addr: b.data, Len: 16})
	r.SetDesc(0, ringtest.Desc{Addr: b.data, Len: 16, Flags: ringtest.FlagIndirect})
	r.SetAvailIdx(1)
	if ok, err := b.dev.Pop(new(ring.Chain)); ok || !errors.Is(err, ring.ErrPeerChain) {
		t.Fatalf("Pop: %v %v", ok, err)
	}
}

// TestDirectThenIndirect checks §2.7.5.3.2: a direct chain may end in an indirect descriptor, whose own write
// flag means nothing.
func TestDirectThenIndirect(t *testing.T) {
	b := newBed(t, 4, ring.FeatureIndirect, 0, 0, false)
	r := ringtest.NewRaw(b.m, b.q)
	r.SetTable(b.data,
		ringtest.Desc{Addr: b.data + 64, Len: 1, Flags: ringtest.FlagNext, Next: 2},
		ringtest.Desc{Addr: b.data + 128, Len: 7},
		ringtest.Desc{Addr: b.data + 65, Len: 2, Flags: ringtest.FlagWrite})
	r.SetDesc(3, ringtest.Desc{Addr: b.data + 70, Len: 4, Flags: ringtest.FlagNext, Next: 1})
	r.SetDesc(1, ringtest.Desc{Addr: b.data, Len: 48, Flags: ringtest.FlagIndirect | ringtest.FlagWrite})
	r.SetAvail(0, 3)
	r.SetAvailIdx(1)
	var c ring.Chain
	if ok, err := b.dev.Pop(&c); !ok || err != nil {
		t.Fatalf("Pop: %v %v", ok, err)
	}
	if len(c.Readable) != 2 || c.ReadableBytes != 5 || len(c.Writable) != 1 || c.WritableBytes != 2 {
		t.Fatalf("chain %+v", c)
	}
}

func TestAllowEmpty(t *testing.T) {
	b := newBed(t, 4, 0, 0, 0, false)
	dev, err := ring.NewDevice(b.m, ring.DeviceConfig{Queue: b.q, AllowEmpty: true, MaxSegments: 1})
	if err != nil {
		t.Fatal(err)
	}
	r := ringtest.NewRaw(b.m, b.q)
	r.SetDesc(0, ringtest.Desc{Flags: ringtest.FlagNext, Next: 1})
	r.SetDesc(1, ringtest.Desc{Addr: b.data, Len: 3, Flags: ringtest.FlagWrite})
	r.SetAvailIdx(1)
	var c ring.Chain
	if ok, err := dev.Pop(&c); !ok || err != nil || len(c.Readable) != 0 || c.WritableBytes != 3 {
		t.Fatalf("Pop: %v %v %+v", ok, err, c)
	}
	r.SetDesc(2, ringtest.Desc{Addr: b.data, Len: 1, Flags: ringtest.FlagNext, Next: 3})
	r.SetDesc(3, ringtest.Desc{Addr: b.data, Len: 1})
	r.SetAvail(1, 2)
	r.SetAvailIdx(2)
	if ok, err := dev.Pop(&c); ok || !errors.Is(err, ring.ErrPeerChain) {
		t.Fatalf("two segments where one is allowed: %v %v", ok, err)
	}
}

// TestEmptyLoops: where empty descriptors are allowed, segments do not bound a loop; the tables' sizes do.
func TestEmptyLoops(t *testing.T) {
	for name, build := range map[string]func(r *ringtest.Raw, data uint64){
		"direct": func(r *ringtest.Raw, _ uint64) {
			r.SetDesc(0, ringtest.Desc{Flags: ringtest.FlagNext, Next: 0})
		},
		"indirect": func(r *ringtest.Raw, data uint64) {
			r.SetTable(data, ringtest.Desc{Flags: ringtest.FlagNext, Next: 1}, ringtest.Desc{Flags: ringtest.FlagNext, Next: 0})
			r.SetDesc(0, ringtest.Desc{Addr: data, Len: 32, Flags: ringtest.FlagIndirect})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, 4, ring.FeatureIndirect, 0, 0, false)
			dev, err := ring.NewDevice(b.m, ring.DeviceConfig{Queue: b.q, AllowEmpty: true})
			if err != nil {
				t.Fatal(err)
			}
			r := ringtest.NewRaw(b.m, b.q)
			build(r, b.data)
			r.SetAvailIdx(1)
			if ok, err := dev.Pop(new(ring.Chain)); ok || !errors.Is(err, ring.ErrPeerChain) {
				t.Fatalf("Pop: %v %v", ok, err)
			}
		})
	}
}

// TestDelayedEvents checks §2.7.7 and §2.7.10 for a peer that asks to be told after several requests, not at the next.
func TestDelayedEvents(t *testing.T) {
	b := newBed(t, 16, ring.FeatureEventIdx, 65533, 0, false)
	r := ringtest.NewRaw(b.m, b.q)
	r.SetAvailEvent(2)    // when index 2 is filled
	r.SetUsedEvent(65535) // when index 65535 is
	var c ring.Chain
	for i, step := range []struct {
		n          int // from index 65533 on
		kick, call bool
	}{{1, false, false}, {3, false, true}, {3, true, false}, {2, false, false}} {
		for range step.n {
			if err := b.drv.Add([]ring.Segment{{Addr: b.data, Len: 8}}, nil, 0); err != nil {
				t.Fatal(err)
			}
		}
		if kick := b.drv.Publish(); kick != step.kick {
			t.Errorf("step %d: kick %v", i, kick)
		}
		for range step.n {
			if ok, err := b.dev.Pop(&c); !ok {
				t.Fatal(err)
			}
			b.dev.Push(c.Head, 0)
		}
		if call := b.dev.Publish(); call != step.call {
			t.Errorf("step %d: call %v", i, call)
		}
	}
}

func TestHostileDevice(t *testing.T) {
	for _, o := range ringtest.DeviceOffences() {
		t.Run(o.Name, func(t *testing.T) {
			b := newBed(t, 4, 0, 0, 0, false)
			if err := b.drv.Add([]ring.Segment{{Addr: b.data, Len: 8}}, []ring.Segment{{Addr: b.data, Len: 8}}, 1); err != nil {
				t.Fatal(err)
			}
			b.drv.Publish()
			o.Do(ringtest.NewRaw(b.m, b.q))
			done := make([]ring.Completion, 4)
			n, err := b.drv.Used(done)
			if n != 0 || !errors.Is(err, o.Want) {
				t.Fatalf("Used: %d %v, want %v", n, err, o.Want)
			}
			if _, again := b.drv.Used(done); again != err || b.drv.Err() != err {
				t.Errorf("the offence is forgotten: %v", again)
			}
			if b.drv.Pending() || !b.drv.Arm() || b.drv.Publish() {
				t.Error("a dead queue has work")
			}
			if err := b.drv.Add([]ring.Segment{{Addr: b.data, Len: 8}}, nil, 2); !errors.Is(err, o.Want) {
				t.Errorf("Add to a dead queue: %v", err)
			}
		})
	}
}

// TestCompletedTwice checks that a device cannot complete one request two times.
func TestCompletedTwice(t *testing.T) {
	b := newBed(t, 4, 0, 0, 0, false)
	for i := range uint64(2) {
		if err := b.drv.Add([]ring.Segment{{Addr: b.data, Len: 8}}, nil, i); err != nil {
			t.Fatal(err)
		}
	}
	b.drv.Publish()
	r := ringtest.NewRaw(b.m, b.q)
	r.SetUsed(0, 1, 0)
	r.SetUsed(1, 1, 0)
	r.SetUsedIdx(2)
	done := make([]ring.Completion, 4)
	if n, err := b.drv.Used(done); n != 1 || done[0].Token != 1 || !errors.Is(err, ring.ErrPeerHead) {
		t.Fatalf("Used: %d %+v %v", n, done[0], err)
	}
}

func TestPushOfStrangerPanics(t *testing.T) {
	b := newBed(t, 4, 0, 0, 0, false)
	for _, head := range []uint16{0, 3, 4, 65535} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Push(%d) did not panic", head)
				}
			}()
			b.dev.Push(head, 0)
		}()
	}
}

// TestScribbler lets both ends run on memory that changes under them at random. Nothing but errors may come of it.
func TestScribbler(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var c ring.Chain
	for range 3000 {
		b := newBed(t, 8, uint64(rng.Uint32())&(ring.FeatureEventIdx|ring.FeatureIndirect), uint16(rng.Uint32()), 0, true)
		b.mem = b.mem[:int(b.data-bedBase)+256]
		var heads []uint16
		for range 60 {
			switch rng.IntN(8) {
			case 0:
				b.drv.Add([]ring.Segment{{Addr: b.data, Len: 8}}, []ring.Segment{{Addr: b.data + 8, Len: 8}}, 7)
			case 1:
				b.drv.Publish()
			case 2:
				if ok, err := b.dev.Pop(&c); ok {
					heads = append(heads, c.Head)
					c.ReadAt(make([]byte, 64), 0)
				} else if err != nil && !ringtest.IsPeerError(err) {
					t.Fatal(err)
				}
			case 3:
				if len(heads) > 0 {
					b.dev.Push(heads[0], 16)
					heads = heads[1:]
				}
			case 4:
				b.dev.Publish()
			case 5:
				if _, err := b.drv.Used(make([]ring.Completion, 4)); err != nil && !ringtest.IsPeerError(err) {
					t.Fatal(err)
				}
			case 6:
				ringtest.Scribble(rng, b.mem, rng.IntN(4))
			case 7:
				if rng.IntN(4) == 0 {
					ringtest.Scribble(rng, b.logMem, rng.IntN(3))
				}
				if rng.IntN(4) == 0 {
					heads = nil
					if err := b.makeDevice(0); err != nil {
						if !ringtest.IsPeerError(err) {
							t.Fatal(err)
						}
						clear(b.logMem)
						if err := b.makeDevice(0); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
		}
	}
}
