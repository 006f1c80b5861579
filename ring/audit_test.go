package ring

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// auditBed is a queue with both sides and a log, of which copies can be taken.
type auditBed struct {
	mem    []byte
	layout Layout
	log    []byte
	drv    *Driver
	dev    *Device
}

func newAuditBed(t testing.TB, size uint16) *auditBed {
	t.Helper()
	l, err := LayoutOf(size)
	if err != nil {
		t.Fatal(err)
	}
	b := &auditBed{mem: make([]byte, l.Bytes+4096), layout: l, log: make([]byte, InflightBytes(size))}
	m, err := NewMemory(Region{Mem: b.mem})
	if err != nil {
		t.Fatal(err)
	}
	if b.drv, err = NewDriver(m, DriverConfig{Queue: l.At(0, FeatureEventIdx)}); err != nil {
		t.Fatal(err)
	}
	b.device(t)
	return b
}

// device attaches a new device.
func (b *auditBed) device(t testing.TB) {
	t.Helper()
	m, err := NewMemory(Region{Mem: b.mem})
	if err != nil {
		t.Fatal(err)
	}
	log, err := NewInflight(b.log, b.layout.Size)
	if err != nil {
		t.Fatal(err)
	}
	if b.dev, err = NewDevice(m, DeviceConfig{Queue: b.layout.At(0, FeatureEventIdx), Log: log}); err != nil {
		t.Fatal(err)
	}
}

func (b *auditBed) evidence() *Evidence {
	l := b.layout
	return &Evidence{
		Size: l.Size, Avail: binary.LittleEndian.Uint16(b.mem[l.Avail+offIdx:]),
		Used: append([]byte(nil), b.mem[l.Used:l.Used+uint64(UsedBytes(l.Size))]...), Log: append([]byte(nil), b.log...),
	}
}

// A device that keeps the rules is never found to break one, whatever it does and wherever it dies.
func TestAuditOfGoodDevice(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 50 {
		b := newAuditBed(t, 1<<rnd.IntN(6))
		var heads []uint16
		for range 2000 {
			switch rnd.IntN(6) {
			case 0, 1:
				if b.drv.Add([]Segment{{Addr: b.layout.Bytes, Len: 16}}, nil, 1) == nil {
					b.drv.Publish()
				}
			case 2:
				var c Chain
				if ok, err := b.dev.Pop(&c); err != nil {
					t.Fatal(err)
				} else if ok {
					heads = append(heads, c.Head)
				}
			case 3:
				if n := len(heads); n > 0 {
					i := rnd.IntN(n)
					b.dev.Push(heads[i], 0)
					heads[i] = heads[n-1]
					heads = heads[:n-1]
				}
			case 4:
				b.dev.Publish()
				var done [64]Completion
				if _, err := b.drv.Used(done[:]); err != nil {
					t.Fatal(err)
				}
			case 5:
				if rnd.IntN(20) == 0 { // dies
					heads = nil
					b.device(t)
				}
			}
			if f := Audit(b.evidence()); f.Rule != RuleNone {
				t.Fatalf("a device that keeps the rules: %+v", f)
			}
		}
	}
}

// Every way to break a rule is found, and those that the driver of the queue can bring about are said to be Forgeable.
func TestAuditFinds(t *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct {
		name string
		do   func(e *Evidence)
		want Rule
	}{
		{"nothing", func(*Evidence) {}, RuleNone},
		{"jump", func(e *Evidence) { le.PutUint16(e.Used[offIdx:], e.UsedIdx()+100) }, RuleLogAhead},
		{"small jump", func(e *Evidence) { le.PutUint16(e.Used[offIdx:], e.UsedIdx()+3) }, RuleLogUsed},
		{"back", func(e *Evidence) { le.PutUint16(e.Used[offIdx:], e.UsedIdx()-1) }, RuleLogAhead},
		{"head", func(e *Evidence) { le.PutUint32(e.Used[offRing+8:], 8) }, RuleUsedHead},
		{"head far", func(e *Evidence) { le.PutUint32(e.Used[offRing+8*7:], 1<<31) }, RuleUsedHead},
		{"version", func(e *Evidence) { le.PutUint16(e.Log[logVersion:], 2) }, RuleLogFormat},
		{"entries", func(e *Evidence) { le.PutUint16(e.Log[logDescNum:], 4) }, RuleLogFormat},
		{"features", func(e *Evidence) { e.Log[7] = 1 }, RuleLogFormat},
		{"flag", func(e *Evidence) { e.Log[logEntries+logEntryLen*7] = 2 }, RuleLogEntry},
		{"batch", func(e *Evidence) { le.PutUint16(e.Log[logLastBatch:], 8) }, RuleLogBatch},
		{"log index", func(e *Evidence) { le.PutUint16(e.Log[logUsedIdx:], 77) }, RuleLogAhead},
		{"jump with the log", func(e *Evidence) {
			le.PutUint16(e.Used[offIdx:], e.UsedIdx()+5)
			le.PutUint16(e.Log[logUsedIdx:], e.UsedIdx())
		}, RuleUsedIndex},
		{"the driver goes back", func(e *Evidence) { e.Avail -= 5 }, RuleUsedIndex},
		{"in flight without a request", func(e *Evidence) {
			for i := range 5 {
				e.Log[logEntries+logEntryLen*i] = 1
			}
		}, RuleInFlight},
		{"unused log, jump", func(e *Evidence) {
			le.PutUint16(e.Log[logVersion:], 0)
			le.PutUint16(e.Used[offIdx:], e.UsedIdx()+5)
		}, RuleUsedIndex},
		{"no log", func(e *Evidence) { e.Log = nil }, RuleNone},
		{"no log, jump", func(e *Evidence) { e.Log = nil; le.PutUint16(e.Used[offIdx:], e.UsedIdx()+9) }, RuleUsedIndex},
	} {
		b := newAuditBed(t, 8)
		var chain Chain
		for i := range 6 {
			if err := b.drv.Add([]Segment{{Addr: b.layout.Bytes, Len: 16}}, nil, uint64(i)); err != nil {
				t.Fatal(err)
			}
		}
		b.drv.Publish()
		for i := range 4 {
			if ok, err := b.dev.Pop(&chain); !ok || err != nil {
				t.Fatal(ok, err)
			}
			if i < 2 {
				b.dev.Push(chain.Head, 0)
			}
		}
		b.dev.Publish()
		e := b.evidence()
		c.do(e)
		f := Audit(e)
		if f.Rule != c.want || (f.What == "") != (c.want == RuleNone) {
			t.Errorf("%s: %+v, want rule %d", c.name, f, c.want)
		}
		if f.Rule.Momentary() != (f.Rule.Forgeable() || f.Rule == RuleLogUsed) {
			t.Errorf("%s: momentary %t", c.name, f.Rule.Momentary())
		}
		if f.Rule.Forgeable() != (c.want == RuleUsedIndex || c.want == RuleInFlight) {
			t.Errorf("%s: forgeable %t", c.name, f.Rule.Forgeable())
		}
	}
}

// No client of a device that keeps the rules can bring about a finding that is not Forgeable, and nothing makes Audit panic.
func FuzzAudit(f *testing.F) {
	f.Add([]byte{}, uint16(3), uint8(3), true)
	f.Add([]byte{1, 2, 3, 0xff, 0xff}, uint16(0), uint8(0), false)
	f.Fuzz(func(t *testing.T, noise []byte, avail uint16, order uint8, mine bool) {
		b := newAuditBed(t, 1<<(order%8))
		e := b.evidence()
		e.Avail = avail
		if !mine { // what the device wrote is as it was
			if r := Audit(e).Rule; r != RuleNone && !r.Forgeable() {
				t.Fatalf("a driver of the queue brought about rule %d", r)
			}
			return
		}
		n := copy(e.Used, noise)
		copy(e.Log, noise[n:])
		Audit(e)
		for i, x := range noise {
			e.Log[i%len(e.Log)] ^= x
		}
		Audit(e)
	})
}
