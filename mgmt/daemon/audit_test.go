package daemon

import (
	"testing"
	"time"
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
