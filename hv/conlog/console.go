package conlog

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring/logring"
)

// Console is what a guest's outputs have in common: the log and the last lines. It is safe for concurrent use.
type Console struct {
	mu      sync.Mutex
	tail    tail
	log     logPair
	lim     logring.Limiter
	dropped int64             // since the last note of that in the log
	ring    *logring.Producer // to a console driver, in place of log; or nil
	bell    int
}

// New returns a console that keeps the last lines (0: hv.ConsoleTail), and all of it in two files that are used in turn, each up to
// limit bytes (0: DefaultLimit). A file of -1 is none. It goes on where an earlier user of the same files stopped.
func New(lines int, files [2]int, limit int64) *Console {
	if lines <= 0 {
		lines = hv.ConsoleTail
	}
	return &Console{tail: newTail(lines), log: newLogPair(files, limit), lim: logring.NewLimiter(floodRate, FloodBurst)}
}

// Share makes the console write to the ring of a console driver, in place of the files. Nothing that the driver does or does not do holds
// the guest up. To be called before Record. Errors: memory that cannot be mapped, or is no ring.
func (k *Console) Share(r *hv.ConsoleRing) error {
	mem, err := unix.Mmap(r.Memory, 0, int(r.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the console's ring: %w", err)
	}
	p, err := logring.NewProducer(mem)
	if err != nil {
		_ = unix.Munmap(mem)
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ring, k.bell = p, r.Kick
	return nil
}

// Record keeps b; a detached console's flood is thinned out before it reaches the log.
func (k *Console) Record(b []byte, detached bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tail.write(b)
	if k.ring != nil {
		if k.ring.Put(b, time.Now()) {
			// It cannot block, and if it fails the driver looks by itself when it has something else to do.
			_, _ = unix.Write(k.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		}
		return
	}
	if detached {
		n := k.lim.Admit(int64(len(b)), time.Now())
		if n > 0 && k.dropped > 0 {
			k.log.write(fmt.Appendf(nil, "\n[grail: %d bytes of output dropped]\n", k.dropped))
			k.dropped = 0
		}
		k.dropped += int64(len(b)) - n
		b = b[:n]
	}
	if len(b) > 0 {
		k.log.write(b)
	}
}

// Said returns the last line by which a program's runtime began to say what it dies of, made printable, however much was said after it; empty if there was
// none. The guest may have made it up.
func (k *Console) Said() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return printable(k.tail.said)
}

// Lines returns the last lines, oldest first, with what a terminal might obey replaced by dots.
func (k *Console) Lines() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tail.lines()
}
