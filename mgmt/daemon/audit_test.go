package daemon

import (
	"encoding/binary"
	"os"
	"testing"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring"
)

// A client is believed a few times, and then as seldom as it takes to have its driver's other clients not suffer.
func TestBelieved(t *testing.T) {
	var c client
	now := time.Unix(1_000_000, 0)
	count := func(n int) (believed int) {
		for range n {
			if c.believed(now) {
				believed++
			}
		}
		return believed
	}
	for _, step := range []struct {
		later time.Duration
		want  int
	}{
		{0, blameBurst}, {blamePause - 1, 0}, {1, 1}, {blamePause / 2, 0}, {2 * blamePause, 2}, {time.Hour, blameBurst}, {-time.Hour, 0},
	} {
		now = now.Add(step.later)
		if got := count(10); got != step.want {
			t.Errorf("after %v: believed %d times, want %d", step.later, got, step.want)
		}
	}
}

// What a driver is blamed for it did itself: a wild head that its predecessor left in a ring which cannot be started anew is not its own, and another one is.
func TestWildHeads(t *testing.T) {
	const size, base = 8, 1 << 30
	l, err := ring.LayoutOf(size)
	if err != nil {
		t.Fatal(err)
	}
	q := l.At(base, 0)
	mem, err := hv.NewMemory("client", 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(hv.Attachment{Log: -1, Regions: []hv.AttachMem{{FD: 0, Base: base, Size: 1 << 16}},
		Queues: []hv.AttachRing{{Size: size, Kick: -1, Call: -1, Desc: q.Desc, Avail: q.Avail, Used: q.Used}}}, []*os.File{mem})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	lie := func(place int, head uint32) {
		t.Helper()
		// Entries of 8 bytes follow flags and index (virtio 1.2 §2.7.8).
		if _, err := mem.WriteAt(binary.LittleEndian.AppendUint32(nil, head), int64(q.Used-base)+4+8*int64(place)); err != nil {
			t.Fatal(err)
		}
	}
	find := func() ring.Rule {
		t.Helper()
		e, ok := c.evidenceOf(0)
		if !ok {
			t.Fatal("no evidence")
		}
		return ring.Audit(e).Rule
	}
	lie(3, 263)
	if got := find(); got != ring.RuleUsedHead {
		t.Errorf("the liar: %v", got)
	}
	c.noteWild()
	if got := find(); got != ring.RuleNone {
		t.Errorf("its successor: %v", got)
	}
	lie(3, 264)
	if got := find(); got != ring.RuleUsedHead {
		t.Errorf("a successor that lies in the same place: %v", got)
	}
	lie(3, 263)
	lie(4, 263)
	if got := find(); got != ring.RuleUsedHead {
		t.Errorf("a successor that lies in another place: %v", got)
	}
	lie(4, 0)
	lie(3, 2)
	if got := find(); got != ring.RuleNone {
		t.Errorf("once it was overwritten: %v", got)
	}
}
