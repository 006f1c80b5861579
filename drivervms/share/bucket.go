package share

import "time"

// Times in buckets are in units of 1/64 ns, so that what rounding loses of a request is nothing to speak of; they last for four years.
const (
	fine   = 64
	second = fine * int64(time.Second)
)

// maxCharge bounds what one charge takes from a bucket, in tokens: the product with second must not overflow.
const maxCharge = 1 << 27

// bucket is a token bucket, kept as the time at which all that was taken has been earned.
type bucket struct {
	rate  int64 // tokens a second; 0: no bucket
	burst int64 // what an unused bucket holds, as the time in which it is earned
	until int64 // when what was taken has been earned
}

// set changes the rate and keeps the debt.
func (b *bucket) set(rate uint64, burst time.Duration) {
	b.rate, b.burst = int64(rate), int64(burst)*fine
}

// empty reports whether nothing is left. now is in ns.
func (b *bucket) empty(now int64) bool { return b.rate != 0 && b.until >= now*fine }

// left returns the tokens that are there, not negative.
func (b *bucket) left(now int64) int64 {
	now *= fine
	t := now - max(b.until, now-b.burst)
	if t <= 0 {
		return 0
	}
	return int64(float64(t) / float64(second) * float64(b.rate))
}

// take takes n tokens, also those that are not there.
func (b *bucket) take(n, now int64) {
	if b.rate == 0 || n <= 0 {
		return
	}
	b.until = max(b.until, now*fine-b.burst) + min(n, maxCharge)*second/b.rate
}

// at returns when the bucket will not be empty and will have filled for rest, in ns.
func (b *bucket) at(rest time.Duration) int64 { return b.until/fine + 1 + int64(rest) }
