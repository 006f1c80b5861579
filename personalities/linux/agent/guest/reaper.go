package guest

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Reaper starts programs and collects them when they have ended. As the first process of a machine it also collects every
// orphan, which package os would not, and which would take package os's children away from it: so nothing else may start programs then.
type Reaper struct {
	all      bool
	mu       sync.Mutex
	children map[int]*Child
	orphans  atomic.Uint64
	ended    chan os.Signal
	closed   bool
}

// Child is a program that was started. It leads a session and a group of processes.
type Child struct {
	r      *Reaper
	pid    int
	done   chan struct{}
	status unix.WaitStatus
}

// NewReaper returns a Reaper, for all children of this process if all is set, else for those that it starts.
func NewReaper(all bool) *Reaper {
	r := &Reaper{all: all, children: make(map[int]*Child), ended: make(chan os.Signal, 1)}
	signal.Notify(r.ended, unix.SIGCHLD)
	go func() {
		for range r.ended {
			r.reap()
		}
	}()
	return r
}

// Start runs a program. Errors: those of fork and exec.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr) (*Child, error) {
	// The lock keeps the end of the new process from being taken for an orphan's.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errors.New("the guest is shutting down")
	}
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	c := &Child{r: r, pid: pid, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.all {
		for pid := range r.children {
			r.wait(pid)
		}
		return
	}
	for r.wait(-1) {
	}
}

// wait collects a process that has ended, and returns whether there was one. The caller holds mu.
func (r *Reaper) wait(pid int) bool {
	var status unix.WaitStatus
	for {
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || got <= 0 {
			return false
		}
		if c := r.children[got]; c != nil {
			delete(r.children, got)
			c.status = status
			close(c.done)
		} else {
			r.orphans.Add(1)
		}
		return true
	}
}

// WaitAll collects until there is no process left below this one, or the time is over, and returns whether there is none. Nothing can be started
// from then on.
func (r *Reaper) WaitAll(limit time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	late := time.After(limit)
	for {
		for r.wait(-1) {
		}
		// Peek only: what ends just now is collected in the next round.
		if err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err == unix.ECHILD {
			return true
		}
		r.mu.Unlock()
		select {
		case <-ended:
		case <-late:
			r.mu.Lock()
			return false
		}
		r.mu.Lock()
	}
}

// Orphans returns how many processes that others had started were collected.
func (r *Reaper) Orphans() uint64 { return r.orphans.Load() }

// Signal sends a signal to the program's group. It does nothing once the program has been collected, as its number may be another's then.
func (c *Child) Signal(s syscall.Signal) error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	select {
	case <-c.done:
		return os.ErrProcessDone
	default:
	}
	if err := unix.Kill(-c.pid, s); !errors.Is(err, unix.ESRCH) {
		return err
	}
	return unix.Kill(c.pid, s)
}

// Done is closed when the program has been collected.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status returns how the program ended. It may be called when Done is closed.
func (c *Child) Status() unix.WaitStatus { return c.status }
