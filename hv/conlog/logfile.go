package conlog

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// logPair is a bounded log in two files, used in turn.
type logPair struct {
	fd    [2]int
	cur   int
	off   int64
	limit int64
}

// newLogPair goes on where an earlier user of the same files stopped.
func newLogPair(fd [2]int, limit int64) logPair {
	if limit <= 0 {
		limit = DefaultLimit
	}
	l := logPair{fd: fd, limit: limit}
	var st [2]unix.Stat_t
	for i := range fd {
		if fd[i] < 0 || unix.Fstat(fd[i], &st[i]) != nil {
			l.fd[i] = -1
		}
	}
	if l.fd[0] < 0 || l.fd[1] >= 0 && st[1].Size > 0 && st[1].Mtim.Nano() > st[0].Mtim.Nano() {
		l.cur = 1
	}
	l.off = st[l.cur].Size
	return l
}

// write appends b, at most one file's worth of it. A host that cannot write loses the log, not the guest.
func (l *logPair) write(b []byte) {
	if l.fd[l.cur] < 0 {
		return
	}
	if int64(len(b)) > l.limit {
		b = b[int64(len(b))-l.limit:]
	}
	if l.off+int64(len(b)) > l.limit {
		if l.fd[1-l.cur] >= 0 {
			l.cur = 1 - l.cur
		}
		if unix.Ftruncate(l.fd[l.cur], 0) != nil {
			return
		}
		l.off = 0
	}
	n, err := unix.Pwrite(l.fd[l.cur], b, l.off)
	if err == nil {
		l.off += int64(n)
	}
}

// Rate of a flood that a console without a reader may log: burst bytes at once, then rate bytes a second.
const (
	FloodBurst = 1 << 20
	floodRate  = 256 << 10
)

// DefaultLimit is how large each of the two log files may become, in bytes.
const DefaultLimit = 4 << 20

// limiter drops what comes too fast, and says how much it was.
type limiter struct {
	tokens  int64
	last    time.Time
	dropped int64
}

// admit returns how many of n bytes may pass, and a note to log before them, if some were dropped earlier.
// After a drop nothing passes until a quarter of the burst is there again, so that what passes is readable.
func (l *limiter) admit(n int64, now time.Time) (int64, string) {
	if l.last.IsZero() {
		l.tokens, l.last = FloodBurst, now
	} else if d := now.Sub(l.last); d >= time.Millisecond {
		l.tokens = min(FloodBurst, l.tokens+int64(d.Seconds()*floodRate))
		l.last = now
	}
	var note string
	if l.dropped > 0 {
		if l.tokens < FloodBurst/4 {
			l.dropped += n
			return 0, ""
		}
		note = fmt.Sprintf("\n[grail: %d bytes of output dropped]\n", l.dropped)
	}
	ok := min(n, l.tokens)
	l.tokens -= ok
	l.dropped = n - ok
	return ok, note
}
