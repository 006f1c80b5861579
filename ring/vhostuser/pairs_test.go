package vhostuser

import (
	"errors"
	"strings"
	"testing"

	"github.com/grailos/grail/ring"
)

// pairsFeature is what a front end without ProtocolMultiQueue does not get from pairs.
const pairsFeature uint64 = 1 << 22

// pairs is a recorder with two pairs of queues, as a network device has them.
type pairs struct{ *recorder }

func (p *pairs) Features() uint64         { return p.recorder.Features() | pairsFeature }
func (p *pairs) Queues() uint16           { return 4 }
func (p *pairs) Single() (uint16, uint64) { return 2, pairsFeature }

func (p *pairs) Start(q QueueState) error {
	if q.Index >= 2 && q.Ring.Features&pairsFeature == 0 {
		p.calls = append(p.calls, "Start without the feature")
	}
	return p.recorder.Start(q)
}

func newPairsPeer(t *testing.T) *peer {
	h := newRecorder(t)
	return &peer{t: t, s: newSession(&pairs{h}), h: h}
}

func (p *peer) number(req Request) uint64 {
	p.t.Helper()
	r, err := p.send(req, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	v, err := r.u64()
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// TestSingle: what a front end sees of pairs depends on what it has said of ProtocolMultiQueue so far.
func TestSingle(t *testing.T) {
	const most = ProtocolSupported &^ ProtocolMultiQueue
	for _, c := range []struct {
		name    string
		proto   []uint64 // SET_PROTOCOL_FEATURES, one after the other
		queues  uint64
		feature bool
	}{
		{"nothing said", nil, 2, true},
		{"with", []uint64{ProtocolSupported}, 4, true},
		{"without", []uint64{most}, 2, false},
		{"none", []uint64{0}, 2, false},
		{"with, then without", []uint64{ProtocolSupported, most}, 2, false},
		{"without, then with", []uint64{most, ProtocolSupported}, 4, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPairsPeer(t)
			for _, v := range c.proto {
				p.ok(SetProtocolFeatures, putU64(v))
			}
			if n := p.number(GetQueueNum); n != c.queues {
				t.Errorf("%d queues, want %d", n, c.queues)
			}
			if f := p.number(GetFeatures); f&pairsFeature != 0 != c.feature {
				t.Errorf("features %#x, want the feature: %t", f, c.feature)
			}
			_, err := p.send(SetVringNum, vringState{uint32(c.queues - 1), 8}.encode())
			if err != nil {
				t.Error(err)
			}
			_, err = p.send(SetFeatures, putU64(FeatureProtocol|ring.FeatureVersion1|pairsFeature))
			if (err == nil) != c.feature || err != nil && !errors.Is(err, ErrMessage) {
				t.Error(err)
			}
			if _, err = p.send(SetVringNum, vringState{uint32(c.queues), 8}.encode()); !errors.Is(err, ErrMessage) {
				t.Errorf("queue %d: %v", c.queues, err)
			}
			p.s.close(nil)
		})
	}
}

// TestSingleRunning withdraws the second pair while it runs, and gives it back.
func TestSingleRunning(t *testing.T) {
	p := newPairsPeer(t)
	p.ok(SetProtocolFeatures, putU64(ProtocolSupported))
	p.ok(SetFeatures, putU64(FeatureProtocol|ring.FeatureVersion1|pairsFeature))
	p.memory()
	for i := range uint32(4) {
		p.queue(i)
		p.enable(i)
	}
	p.h.calls = nil
	p.ok(SetProtocolFeatures, putU64(ProtocolSupported)) // QEMU says it once a pair
	p.expect()
	p.ok(SetVringEnable, vringState{3, 0}.encode())
	p.expect("Stop 3")
	p.ok(SetProtocolFeatures, putU64(ProtocolSupported&^ProtocolMultiQueue))
	if len(p.h.running) != 2 || !strings.HasPrefix(strings.Join(p.h.calls, ","), "Stop 0,Stop 1,Stop 2,Start 0") {
		t.Fatal(p.h.running, p.h.calls)
	}
	p.ok(SetProtocolFeatures, putU64(ProtocolSupported))
	if len(p.h.running) != 3 || p.h.running[3] {
		t.Fatal(p.h.running, p.h.calls)
	}
	for _, c := range p.h.calls {
		if c == "Start without the feature" {
			t.Error(c)
		}
	}
	p.s.close(nil)
}
