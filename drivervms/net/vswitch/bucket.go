package vswitch

import "time"

// bucket is a token bucket. Times are in ns of one monotonic clock.
type bucket struct {
	rate, burst int64 // tokens a second, tokens
	credit      int64 // in billionths of a token
	last        int64
}

const token = int64(time.Second)

func newBucket(rate, burst uint32, now int64) bucket {
	return bucket{rate: int64(rate), burst: int64(burst), credit: int64(burst) * token, last: now}
}

// take takes one token, and reports whether there was one.
func (b *bucket) take(now int64) bool {
	// A second fills any bucket whose burst is at most its rate, and keeps the product below 2^63.
	dt := min(now-b.last, token)
	if dt > 0 {
		b.last = now
		b.credit = min(b.credit+dt*b.rate, b.burst*token)
	}
	if b.credit < token {
		return false
	}
	b.credit -= token
	return true
}
