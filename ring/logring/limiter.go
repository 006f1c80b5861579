package logring

import "time"

// Limiter says what comes too fast for a log: a burst passes, and then what the rate allows.
type Limiter struct {
	rate, burst int64 // bytes a second, bytes
	tokens      int64
	last        time.Time
	closed      bool
}

// NewLimiter returns a limiter that lets burst bytes pass at once, and then rate bytes a second. Both are above 0.
func NewLimiter(rate, burst int64) Limiter { return Limiter{rate: rate, burst: burst, tokens: burst} }

// Admit returns how many of the next n bytes may pass; the rest is to be dropped. After a drop nothing passes until a quarter of the burst is
// there again, so that what passes is readable.
func (l *Limiter) Admit(n int64, now time.Time) int64 {
	if l.last.IsZero() {
		l.last = now
	} else if d := now.Sub(l.last); d >= time.Millisecond {
		l.tokens = int64(min(float64(l.burst), float64(l.tokens)+d.Seconds()*float64(l.rate)))
		l.last = now
	}
	if l.closed && l.tokens < l.burst/4 {
		return 0
	}
	ok := min(n, l.tokens)
	l.tokens -= ok
	l.closed = ok < n
	return ok
}

// Closed reports whether the last bytes were dropped.
func (l *Limiter) Closed() bool { return l.closed }
