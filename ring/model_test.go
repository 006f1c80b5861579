package ring_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
	"pgregory.net/rapid"
)

type driverEnd interface {
	Add(readable, writable []ring.Segment, token uint64) error
	Publish() bool
	Used([]ring.Completion) (int, error)
	Arm() bool
}

type deviceEnd interface {
	Pop(*ring.Chain) (bool, error)
	Push(head uint16, written uint32)
	Publish() bool
	Arm() bool
}

// model says what a queue must do: every request is popped in order and completed exactly once, whatever the
// batching; a crash of the device repeats requests in flight and nothing else; nobody sleeps while there is work.
type model struct {
	b   *bed
	drv driverEnd
	dev deviceEnd
	raw *ringtest.Raw
	log []byte // nil without a log

	nextToken uint64
	reqs      map[uint64]*request
	freeSlots []int
	added     []uint64 // not yet published
	published []uint64 // not yet popped, in order
	inFlight  []uint64 // popped and not yet pushed, in order of popping
	replay    []uint64 // to be popped again after a crash, in order
	pushed    []uint64 // not yet published by the device
	completed []uint64 // published by the device, not yet consumed
	devSleeps bool
	drvSleeps bool
	done      int
}

type request struct {
	slot                int
	readable, writable  []ring.Segment
	head                uint16
	written             uint32
	readBytes, wantRoom uint32
}

const slotBytes = 64

func newModel(t *rapid.T) *model {
	size := uint16(1) << rapid.IntRange(0, 10).Draw(t, "log2 size")
	base := rapid.SampledFrom([]uint16{0, 1, 0x7fff, 65535, -size, 1 - size}).Draw(t, "base")
	var features uint64
	if rapid.Bool().Draw(t, "event idx") {
		features |= ring.FeatureEventIdx
	}
	tableMax := uint16(0)
	if rapid.Bool().Draw(t, "indirect") {
		features |= ring.FeatureIndirect
		tableMax = uint16(rapid.IntRange(2, 6).Draw(t, "table entries"))
	}
	pair := rapid.SampledFrom([]string{"ours", "reference driver", "reference device", "ours, logged"}).Draw(t, "pair")
	b, err := makeBed(size, features, base, tableMax, pair == "ours, logged", slotBytes*int(size))
	if err != nil {
		t.Fatal(err)
	}
	m := &model{b: b, drv: b.drv, dev: b.dev, raw: ringtest.NewRaw(b.m, b.q), reqs: map[uint64]*request{}}
	switch pair {
	case "reference driver":
		m.drv = ringtest.NewRefDriver(b.m, b.q, base)
		if err := b.makeDevice(base); err != nil {
			t.Fatal(err)
		}
		m.dev = b.dev
	case "reference device":
		m.dev = ringtest.NewRefDevice(b.m, b.q, base)
	case "ours, logged":
		m.log = b.logMem
	}
	for i := range int(size) {
		m.freeSlots = append(m.freeSlots, i)
	}
	return m
}

// add queues one request of random shape; its first readable bytes are its token.
func (m *model) add(t *rapid.T) {
	if len(m.freeSlots) == 0 {
		t.Skip("all slots taken")
	}
	slot := m.freeSlots[len(m.freeSlots)-1]
	at := m.b.data + uint64(slot)*slotBytes
	r := &request{slot: slot}
	cut := func(n int, segs *[]ring.Segment) (total uint32) {
		for range n {
			l := uint32(rapid.IntRange(1, 4).Draw(t, "length"))
			*segs = append(*segs, ring.Segment{Addr: at, Len: l})
			at += uint64(l)
			total += l
		}
		return total
	}
	r.readable = []ring.Segment{{Addr: at, Len: 8}}
	at += 8
	r.readBytes = 8 + cut(rapid.IntRange(0, 3).Draw(t, "readable"), &r.readable)
	r.wantRoom = cut(rapid.IntRange(0, 3).Draw(t, "writable"), &r.writable)
	err := m.drv.Add(r.readable, r.writable, m.nextToken)
	if errors.Is(err, ring.ErrFull) || errors.Is(err, ring.ErrChain) {
		n := len(r.readable) + len(r.writable)
		if errors.Is(err, ring.ErrChain) && n <= int(m.b.q.Size) {
			t.Fatalf("chain of %d refused for ever in a queue of %d", n, m.b.q.Size)
		}
		t.Skip("full")
	}
	if err != nil {
		t.Fatal(err)
	}
	in, _ := m.b.m.Slice(r.readable[0].Addr, 8)
	binary.LittleEndian.PutUint64(in, m.nextToken)
	m.freeSlots = m.freeSlots[:len(m.freeSlots)-1]
	m.reqs[m.nextToken] = r
	m.added = append(m.added, m.nextToken)
	m.nextToken++
}

func (m *model) publish(t *rapid.T) {
	news := len(m.added) > 0
	kick := m.drv.Publish()
	if kick && !news {
		t.Fatal("kick for nothing")
	}
	if news && m.devSleeps && !kick {
		t.Fatal("device sleeps and gets no kick")
	}
	if kick {
		m.devSleeps = false
	}
	m.published = append(m.published, m.added...)
	m.added = nil
}

func (m *model) pop(t *rapid.T) {
	var c ring.Chain
	ok, err := m.dev.Pop(&c)
	if err != nil {
		t.Fatal(err)
	}
	want := &m.published
	if len(m.replay) > 0 {
		want = &m.replay
	}
	if !ok {
		if len(*want) > 0 {
			t.Fatalf("nothing to pop, %d published, %d to repeat", len(m.published), len(m.replay))
		}
		t.Skip("empty")
	}
	if len(*want) == 0 {
		t.Fatal("popped a request that was not published")
	}
	var b [8]byte
	c.ReadAt(b[:], 0)
	token := binary.LittleEndian.Uint64(b[:])
	if token != (*want)[0] {
		t.Fatalf("popped request %d, want %d", token, (*want)[0])
	}
	if c.Recovered != (want == &m.replay) {
		t.Fatalf("request %d: recovered %v", token, c.Recovered)
	}
	*want = (*want)[1:]
	r := m.reqs[token]
	r.head = c.Head
	if c.ReadableBytes != r.readBytes || c.WritableBytes != r.wantRoom || !sameSegments(m.b, c.Readable, r.readable) || !sameSegments(m.b, c.Writable, r.writable) {
		t.Fatalf("request %d came as %+v, sent %+v", token, c, r)
	}
	m.inFlight = append(m.inFlight, token)
}

// sameSegments reports whether got is exactly the memory of want, one segment each.
func sameSegments(b *bed, got [][]byte, want []ring.Segment) bool {
	return slices.EqualFunc(got, want, func(g []byte, w ring.Segment) bool {
		m, err := b.m.Slice(w.Addr, w.Len)
		return err == nil && len(g) == len(m) && &g[0] == &m[0]
	})
}

// popAll pops until the queue is empty.
func (m *model) popAll(t *rapid.T) {
	if len(m.published)+len(m.replay) == 0 {
		t.Skip("empty")
	}
	for len(m.published)+len(m.replay) > 0 {
		m.pop(t)
	}
}

// push completes any request in flight.
func (m *model) push(t *rapid.T) {
	if len(m.inFlight) == 0 {
		t.Skip("nothing in flight")
	}
	i := rapid.IntRange(0, len(m.inFlight)-1).Draw(t, "which")
	token := m.inFlight[i]
	r := m.reqs[token]
	r.written = uint32(rapid.IntRange(0, int(r.wantRoom)).Draw(t, "written"))
	m.dev.Push(r.head, r.written)
	m.inFlight = slices.Delete(m.inFlight, i, i+1)
	m.pushed = append(m.pushed, token)
}

func (m *model) complete(t *rapid.T) {
	news := len(m.pushed) > 0
	call := m.dev.Publish()
	if call && !news {
		t.Fatal("call for nothing")
	}
	if news && m.drvSleeps && !call {
		t.Fatal("driver sleeps and gets no call")
	}
	if call {
		m.drvSleeps = false
	}
	m.completed = append(m.completed, m.pushed...)
	m.pushed = nil
}

func (m *model) used(t *rapid.T) {
	done := make([]ring.Completion, rapid.IntRange(1, 8).Draw(t, "at most"))
	n, err := m.drv.Used(done)
	if err != nil {
		t.Fatal(err)
	}
	if want := min(len(done), len(m.completed)); n != want {
		t.Fatalf("%d completions, want %d", n, want)
	}
	for _, d := range done[:n] {
		token := m.completed[0]
		m.completed = m.completed[1:]
		r := m.reqs[token]
		if d.Token != token || d.Written != r.written {
			t.Fatalf("completion %+v, want request %d with %d bytes", d, token, r.written)
		}
		delete(m.reqs, token)
		m.freeSlots = append(m.freeSlots, r.slot)
		m.done++
	}
}

func (m *model) armDevice(t *rapid.T) {
	work := len(m.published)+len(m.replay) > 0
	if m.devSleeps = m.dev.Arm(); m.devSleeps == work {
		t.Fatalf("device may sleep: %v, with %d published and %d to repeat", m.devSleeps, len(m.published), len(m.replay))
	}
}

func (m *model) armDriver(t *rapid.T) {
	if m.drvSleeps = m.drv.Arm(); m.drvSleeps == (len(m.completed) > 0) {
		t.Fatalf("driver may sleep: %v, with %d completed", m.drvSleeps, len(m.completed))
	}
}

// crash ends the device between any two stores, and starts another one.
func (m *model) crash(t *rapid.T) {
	if m.log == nil {
		t.Skip("no log")
	}
	le := binary.LittleEndian
	entry := func(head uint16) []byte { return m.log[16+16*int(head):] }
	switch at := rapid.SampledFrom([]string{"between", "begin", "complete", "commit"}).Draw(t, "crash at"); {
	case at == "begin" && len(m.published) > 0 && len(m.replay) == 0:
		// The order of fetching stands, the mark does not yet: the request was not taken.
		head := m.raw.Avail(m.raw.UsedIdx() + uint16(len(m.inFlight)+len(m.pushed)))
		le.PutUint64(entry(head)[8:], 1<<40)
	case at == "complete" && len(m.inFlight) > 0:
		// The link stands, the list's head does not point to it yet.
		head := m.reqs[m.inFlight[0]].head
		le.PutUint16(entry(head)[6:], le.Uint16(m.log[12:]))
	case at == "commit" && len(m.pushed) > 0:
		// The used index is out, the marks of only some of the batch are cleared.
		m.raw.SetUsedIdx(m.raw.UsedIdx() + uint16(len(m.pushed)))
		for _, token := range m.pushed[:rapid.IntRange(0, len(m.pushed)).Draw(t, "marks cleared")] {
			entry(m.reqs[token].head)[0] = 0
		}
		m.completed = append(m.completed, m.pushed...)
		m.pushed = nil
	}
	// Not published means not done: pushed requests are repeated in their places.
	again := slices.Concat(m.inFlight, m.pushed, m.replay)
	slices.Sort(again) // tokens are handed out, published and popped in one order
	m.replay, m.inFlight, m.pushed = again, nil, nil
	junk := rapid.Uint16().Draw(t, "stale index") // the log must know better
	if used := m.raw.UsedIdx(); m.done == 0 && len(m.completed)+len(m.replay) == 0 {
		junk = used // a log that was never used does not
	}
	if err := m.b.makeDevice(junk); err != nil {
		t.Fatal(err)
	}
	m.dev = m.b.dev
	if m.b.dev.InFlight() != len(m.replay) {
		t.Fatalf("%d requests recovered, want %d", m.b.dev.InFlight(), len(m.replay))
	}
	m.devSleeps, m.drvSleeps = false, false // whoever starts a device rings both doorbells
}

func (m *model) check(t *rapid.T) {
	if d := m.b.drv; m.drv == driverEnd(d) && d.Outstanding() != len(m.reqs) {
		t.Fatalf("%d outstanding, want %d", d.Outstanding(), len(m.reqs))
	}
	if d := m.b.dev; m.dev == deviceEnd(d) && d.InFlight() != len(m.inFlight)+len(m.replay) {
		t.Fatalf("%d in flight, want %d", d.InFlight(), len(m.inFlight)+len(m.replay))
	}
}

// settle completes everything, as a fair run would.
func (m *model) settle(t *rapid.T) {
	m.publish(t)
	for len(m.published)+len(m.replay) > 0 {
		m.pop(t)
	}
	for len(m.inFlight) > 0 {
		m.push(t)
	}
	m.complete(t)
	for len(m.completed) > 0 {
		m.used(t)
	}
	if len(m.reqs) != 0 {
		t.Fatalf("%d requests lost", len(m.reqs))
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		t.Repeat(map[string]func(*rapid.T){
			"add": m.add, "add again": m.add, "publish": m.publish, "pop": m.pop, "pop all": m.popAll, "push": m.push,
			"push again": m.push, "complete": m.complete, "used": m.used, "arm device": m.armDevice, "arm driver": m.armDriver,
			"crash": m.crash, "crash again": m.crash, "": m.check,
		})
		m.settle(t)
	})
}

// TestWrap runs every pair of ends far beyond the 16-bit indices.
func TestWrap(t *testing.T) {
	for _, size := range []uint16{1, 8} {
		for _, features := range []uint64{0, ring.FeatureEventIdx} {
			t.Run(fmt.Sprintf("size=%d/features=%#x", size, features), func(t *testing.T) {
				b := newBed(t, size, features, 0, 0, true)
				seg := []ring.Segment{{Addr: b.data, Len: 8}}
				var c ring.Chain
				done := make([]ring.Completion, size)
				for i := 0; i < 140000; {
					n := i%int(size) + 1
					for range n {
						if err := b.drv.Add(seg, nil, uint64(i)); err != nil {
							t.Fatal(err)
						}
						i++
					}
					b.drv.Publish()
					for range n {
						if ok, err := b.dev.Pop(&c); !ok || err != nil {
							t.Fatalf("request %d: %v %v", i, ok, err)
						}
						b.dev.Push(c.Head, 0)
					}
					b.dev.Publish()
					if k, err := b.drv.Used(done); k != n || err != nil {
						t.Fatalf("request %d: %d completions, %v", i, k, err)
					}
				}
			})
		}
	}
}
