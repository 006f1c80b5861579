package logring

import (
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	l := NewLimiter(1000, 4000)
	at := time.Unix(1000, 0)
	for i, c := range []struct {
		after   time.Duration
		n, want int64
	}{
		{0, 4005, 4000},
		{time.Millisecond, 10, 0},            // right after a drop
		{998 * time.Millisecond, 10, 0},      // still less than a quarter of the burst
		{2 * time.Second, 10, 10},            // again
		{-time.Hour, 10, 10},                 // a clock that was set
		{2 * time.Hour, 5000, 4000},          // never more than a burst
		{200 * 365 * 24 * time.Hour, 10, 10}, // nor after a long time
	} {
		at = at.Add(c.after)
		if got := l.Admit(c.n, at); got != c.want {
			t.Errorf("%d: %d of %d bytes, want %d", i, got, c.n, c.want)
		}
	}
}
