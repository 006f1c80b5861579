package conlog

import (
	"sync"
	"time"

	"github.com/grailos/grail/hv"
)

// Console is what a guest's outputs have in common: the log and the last lines. It is safe for concurrent use.
type Console struct {
	mu   sync.Mutex
	tail tail
	log  logPair
	lim  limiter
}

// New returns a console that keeps the last lines (0: hv.ConsoleTail), and all of it in two files that are used in turn, each up to
// limit bytes (0: DefaultLimit). A file of -1 is none. It goes on where an earlier user of the same files stopped.
func New(lines int, files [2]int, limit int64) *Console {
	if lines <= 0 {
		lines = hv.ConsoleTail
	}
	return &Console{tail: newTail(lines), log: newLogPair(files, limit)}
}

// Record keeps b; a detached console's flood is thinned out before it reaches the log.
func (k *Console) Record(b []byte, detached bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tail.write(b)
	if detached {
		n, note := k.lim.admit(int64(len(b)), time.Now())
		if note != "" {
			k.log.write([]byte(note))
		}
		b = b[:n]
	}
	if len(b) > 0 {
		k.log.write(b)
	}
}

// Lines returns the last lines, oldest first, with what a terminal might obey replaced by dots.
func (k *Console) Lines() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tail.lines()
}
