//go:build linux && amd64

package process

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// cloneWait is how long a clone at the limit waits for the end of another thread: a joined thread still counts for the
// microseconds until it is reaped (much longer on a host that is overloaded).
const cloneWait = time.Second

// clone counts a new thread and lets it be made, or refuses it when there are MaxThreads; g.mu is held. The first refusal
// after a thread's end is late by cloneWait.
func (g *Guest) clone(n *notification, mayWait bool) {
	tid := int(n.PID)
	if !g.traced {
		if threads, ok := g.statusNumber("Threads:", 10); ok {
			g.threads = int(threads) // lags by what is being cloned at this moment
		}
		clear(g.cloning)
	}
	switch {
	case g.threads+len(g.cloning) < g.cfg.MaxThreads:
		g.cloning[tid] = struct{}{}
		if !g.proceed(n) {
			delete(g.cloning, tid)
		}
	case mayWait && g.hopeless != g.exited:
		g.waiting = append(g.waiting, *n)
		id := n.ID
		time.AfterFunc(cloneWait, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			for i, w := range g.waiting {
				if w.ID == id {
					g.waiting = slices.Delete(g.waiting, i, i+1)
					g.hopeless = g.exited
					g.clone(&w, false)
					return
				}
			}
		})
	default:
		_ = ioctl(g.listener, notifSend, &response{ID: n.ID, Error: -int32(unix.EAGAIN)}) // fails only when it is gone
		g.resend(tid)
	}
}

// retryClone lets the first waiting clone through after a thread's end; g.mu is held.
func (g *Guest) retryClone() {
	if len(g.waiting) > 0 {
		n := g.waiting[0]
		g.waiting = slices.Delete(g.waiting, 0, 1)
		g.clone(&n, true)
	}
}

// cloneOver forgets the clone of a thread that was seen elsewhere since, so that it has succeeded, failed or been
// interrupted; g.mu is held.
func (g *Guest) cloneOver(tid int) {
	delete(g.cloning, tid)
	if len(g.waiting) > 0 {
		g.waiting = slices.DeleteFunc(g.waiting, func(n notification) bool { return int(n.PID) == tid })
	}
}
