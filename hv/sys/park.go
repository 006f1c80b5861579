package sys

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// States of a parker's word.
const (
	waiting     = 0
	awake       = 1
	interrupted = 2
)

// parker blocks one thread until another wakes or interrupts it, by a host futex on word: no Go lock, no channel
// and no scheduler hand-over is on the way.
type parker struct{ word atomic.Uint32 }

// arm is called before the thread becomes visible to those who might wake it.
func (p *parker) arm() { p.word.Store(waiting) }

// disarm makes later wake-ups no longer count.
func (p *parker) disarm() { p.word.Store(awake) }

// wake ends the thread's park with nil, also if an interrupt came first: who wakes it has taken it off its queue,
// so a thread that found nothing to look at and waited on would never be woken again.
func (p *parker) wake() {
	if p.word.Swap(awake) == waiting {
		futexWake(&p.word)
	}
}

func (p *parker) interrupt() {
	if p.word.CompareAndSwap(waiting, interrupted) {
		futexWake(&p.word)
	}
}

// forever is the timeout of a wait without one; a limit makes the host's futex end with EINTR on a signal.
const forever = time.Duration(1<<63 - 1)

// park waits, at most for timeout. nil: woken; unix.EINTR: interrupted, or stop says that the thread must look
// around; unix.ETIMEDOUT. arm was called before.
func (t *thread) park(timeout time.Duration) error {
	p := &t.parked
	defer p.disarm()
	if t.mustLook() {
		return t.parkEnd(unix.EINTR)
	}
	deadline := time.Time{}
	if timeout != forever {
		deadline = time.Now().Add(timeout)
	}
	for {
		switch p.word.Load() {
		case awake:
			return nil
		case interrupted:
			if t.mustLook() {
				return t.parkEnd(unix.EINTR)
			}
			if !p.word.CompareAndSwap(interrupted, waiting) {
				continue
			}
			if t.mustLook() {
				return t.parkEnd(unix.EINTR)
			}
		}
		left := time.Hour
		if !deadline.IsZero() {
			if left = min(left, time.Until(deadline)); left <= 0 {
				return t.parkEnd(unix.ETIMEDOUT)
			}
		}
		futexWait(&p.word, waiting, left)
	}
}

// parkEnd returns err, or nil if a wake-up came first.
func (t *thread) parkEnd(err error) error {
	if t.parked.word.Swap(awake) == awake {
		return nil
	}
	return err
}

// Poll implements vfs.Waiter: it waits until one of fds is ready. Errors: unix.EINTR when the thread must look for
// signals.
func (t *thread) Poll(fds []unix.PollFd, timeout time.Duration) (int, error) {
	if err := t.openKick(); err != nil {
		return 0, err
	}
	all := append(fds[:len(fds):len(fds)], unix.PollFd{Fd: int32(t.kickFD), Events: unix.POLLIN})
	var deadline time.Time
	if timeout >= 0 {
		deadline = time.Now().Add(timeout)
	}
	t.polling.Store(true) // pairs with the load in interrupt: either sees the other
	defer t.polling.Store(false)
	for {
		if t.mustLook() {
			return 0, unix.EINTR
		}
		var ts *unix.Timespec
		if timeout >= 0 {
			left := unix.NsecToTimespec(max(0, time.Until(deadline)).Nanoseconds())
			ts = &left
		}
		n, err := unix.Ppoll(all, ts, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		if all[len(fds)].Revents != 0 {
			var b [8]byte
			unix.Read(t.kickFD, b[:])
			n--
		}
		copy(fds, all[:len(fds)])
		if n > 0 || timeout >= 0 && !time.Now().Before(deadline) {
			return n, nil
		}
	}
}

func (t *thread) openKick() error {
	t.kickMu.Lock()
	defer t.kickMu.Unlock()
	if t.kickFD >= 0 {
		return nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		t.kickFD = fd
	}
	return err
}
