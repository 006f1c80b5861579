package reincarnation

import "time"

// The back-off's shape. A driver whose instances keep dying young is started again at once a few times, then
// ever more slowly.
const (
	young    = 10 * time.Second // an instance that lived longer forgives what was before
	free     = 3                // restarts of young instances without delay
	firstGap = 100 * time.Millisecond
	maxGap   = 30 * time.Second
	patience = 14 // early deaths in a row, after which a driver is in a crash loop: some 80 s of attempts
)

// Backoff counts the early deaths of a driver's instances. The zero value is ready for use.
type Backoff struct{ deaths int }

// Died tells of an instance that served for the time lived, and returns how long its successor has to wait.
// Deaths on purpose count for nothing; but the long life before one does.
func (b *Backoff) Died(lived time.Duration, onPurpose bool) time.Duration {
	if lived >= young {
		b.deaths = 0
	}
	if onPurpose {
		return 0
	}
	b.deaths++
	n := b.deaths - free
	if n <= 0 {
		return 0
	}
	gap := firstGap
	for range n - 1 {
		if gap *= 2; gap >= maxGap {
			return maxGap
		}
	}
	return gap
}

// Looping reports whether the driver died early so often in a row that another attempt would only do the same: it is to wait for somebody to look at
// it.
func (b *Backoff) Looping() bool { return b.deaths >= patience }

// Reset forgives everything.
func (b *Backoff) Reset() { b.deaths = 0 }
