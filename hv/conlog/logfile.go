package conlog

import "golang.org/x/sys/unix"

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
