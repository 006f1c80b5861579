package reincarnation

import (
	"testing"
	"time"
)

const period = 50 * time.Millisecond

// script runs samples an Interval apart and returns the verdicts.
func script(h *Heartbeat, n int, sample func(i int) Sample, excuse func() time.Duration) []Verdict {
	now := time.Unix(1000, 0)
	var out []Verdict
	for i := range n {
		out = append(out, h.Observe(now, sample(i), excuse))
		now = now.Add(h.Interval())
	}
	return out
}

func count(vs []Verdict, v Verdict) (n int) {
	for _, x := range vs {
		if x == v {
			n++
		}
	}
	return n
}

func TestHeartbeat(t *testing.T) {
	for _, c := range []struct {
		name    string
		sample  func(i int) Sample
		excuse  func() time.Duration
		suspect int
		hung    bool
	}{
		{"beating", func(i int) Sample { return Sample{Beat: uint64(i), Pending: true} }, nil, 0, false},
		{"idle", func(int) Sample { return Sample{Beat: 7} }, nil, 0, false},
		{"slow disk", func(int) Sample { return Sample{Beat: 7, Busy: true, Pending: true} }, nil, 0, false},
		{"silent with work", func(int) Sample { return Sample{Beat: 7, Pending: true} }, nil, 1, true},
		{"beats when rung, client never rings", func(i int) Sample { return Sample{Beat: uint64(i / 3), Pending: true} }, nil, 6, false},
		{"work comes and goes", func(i int) Sample { return Sample{Beat: 7, Pending: i%4 != 0} }, nil, 5, false},
		{"starved by the host", func(int) Sample { return Sample{Beat: 7, Pending: true} },
			func() time.Duration { return time.Hour }, 1, false},
		{"beat runs backwards", func(i int) Sample { return Sample{Beat: -uint64(i), Pending: true} }, nil, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			vs := script(&Heartbeat{Period: period}, 20, c.sample, c.excuse)
			if got := count(vs, Hung) > 0; got != c.hung {
				t.Errorf("hung: %v, want %v: %v", got, c.hung, vs)
			}
			if !c.hung && count(vs, Suspect) != c.suspect {
				t.Errorf("suspected %d times, want %d: %v", count(vs, Suspect), c.suspect, vs)
			}
		})
	}
}

func TestHeartbeatBoundary(t *testing.T) {
	h := Heartbeat{Period: period}
	vs := script(&h, 6, func(int) Sample { return Sample{Beat: 1, Pending: true} }, nil)
	want := []Verdict{Alive, Alive, Suspect, Alive, Alive, Hung}
	for i := range want {
		if vs[i] != want[i] {
			t.Fatalf("sample %d: %v, want %v", i, vs, want)
		}
	}
	if got := time.Unix(1000, 0); !h.Since().Equal(got) {
		t.Errorf("last sign of life %v, want %v", h.Since(), got)
	}
}

func TestHeartbeatBlindWatcher(t *testing.T) {
	h := Heartbeat{Period: period}
	now := time.Unix(1000, 0)
	h.Observe(now, Sample{Beat: 1, Pending: true}, nil)
	if v := h.Observe(now.Add(time.Second), Sample{Beat: 1, Pending: true}, nil); v != Alive {
		t.Errorf("a watcher that slept for a second concluded %v", v)
	}
}

// TestHeartbeatLateEveryTime: a driver in a loop may be what keeps the watcher from its processor.
func TestHeartbeatLateEveryTime(t *testing.T) {
	for _, beats := range []bool{false, true} {
		h := Heartbeat{Period: period}
		now, looks := time.Unix(1000, 0), 0
		for v := Alive; v != Hung && looks < 50; looks++ {
			s := Sample{Beat: 1, Pending: true}
			if beats {
				s.Beat = uint64(looks)
			}
			// At worst all of the time was the host's fault, as far as such an excuse goes.
			v = h.Observe(now, s, func() time.Duration { return now.Sub(h.Since()) * 10 / 11 })
			now = now.Add(2 * period)
		}
		if hung := looks < 50; hung == beats {
			t.Errorf("beating %v: hung %v", beats, hung)
		}
	}
}

func TestBackoff(t *testing.T) {
	var b Backoff
	want := []time.Duration{0, 0, 0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000}
	for i, w := range want {
		if got := b.Died(time.Second, false); got != w*time.Millisecond {
			t.Errorf("death %d: %v, want %v", i+1, got, w*time.Millisecond)
		}
		if got := b.Died(0, true); got != 0 {
			t.Errorf("death on purpose: %v", got)
		}
		if got := b.Looping(); got != (i+1 >= patience) {
			t.Errorf("a crash loop after %d deaths: %t", i+1, got)
		}
	}
	if got := b.Died(young, false); got != 0 {
		t.Errorf("after a long life: %v", got)
	}
	if b.Looping() {
		t.Error("a crash loop after a long life")
	}
	for !b.Looping() {
		b.Died(0, false)
	}
	if b.Died(young, true); b.Looping() {
		t.Error("a crash loop after a long life that was ended on purpose")
	}
	b.Reset()
	for range free {
		if got := b.Died(0, false); got != 0 {
			t.Errorf("after Reset: %v", got)
		}
	}
	if got := b.Died(0, false); got != firstGap {
		t.Errorf("then: %v", got)
	}
}
