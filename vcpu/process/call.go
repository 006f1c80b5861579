//go:build linux && amd64

package process

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Call is one forwarded system call. It is answered once, by Return, Restart or Close, from any goroutine;
// until then its thread waits, and only a fatal signal ends that wait. See the package comment for signals.
type Call struct {
	// TID is the calling thread in the supervisor's process namespace. It identifies the thread as long as that
	// lives; the guest knows the thread by another number.
	TID int
	// Nr is the system call's number, 0 to 0x3fffffff.
	Nr int
	// Args are the six argument registers as the guest left them.
	Args [6]uint64

	g  *Guest
	ip uint64 // the address after the system call instruction

	// Guarded by g.mu.
	id          uint64 // of the current notification; a restart by the kernel makes a new one
	ordinal     uint64 // how many notifications had been received when id was
	stops       int    // after the answer: how often the thread left the call without it (see lostAnswer)
	answer      response
	done        bool
	gone        bool
	interrupted chan struct{} // made on demand; closed by the first withheld signal and when gone
	isIntr      bool
	rebound     chan struct{} // made on demand; closed when id changes and when gone
}

// Errors of Call.
var (
	// ErrAnswered reports a second answer to one call: a bug of the supervisor.
	ErrAnswered = errors.New("process: call already answered")
	// ErrGone reports that the calling thread or the whole guest died meanwhile.
	ErrGone = errors.New("process: the calling thread is gone")
	// ErrNotInterrupted reports Restart for a call that no signal interrupted.
	ErrNotInterrupted = errors.New("process: call was not interrupted")
)

// Return ends the call; the guest sees val in its result register, so an error is Errno(e). It never blocks. A thread that
// died meanwhile is no error. Errors: ErrAnswered.
func (c *Call) Return(val uint64) error {
	return c.end(response{Val: int64(val)})
}

// Errno is the value by which Return makes a call fail with e.
func Errno(e syscall.Errno) uint64 { return -uint64(e) }

// Restart ends an interrupted call as the kernel would: it fails with EINTR or is made again after the signal
// handler, as the handler's SA_RESTART says. Errors: ErrNotInterrupted, ErrAnswered.
func (c *Call) Restart() error {
	c.g.mu.Lock()
	isIntr := c.isIntr
	c.g.mu.Unlock()
	if !isIntr {
		return ErrNotInterrupted
	}
	return c.end(response{Error: -errRestartSys})
}

// errRestartSys is ERESTARTSYS (linux/errno.h), which only the kernel's signal code sees.
const errRestartSys = 512

// Close ends a close(2) call by letting the kernel close the descriptor that was installed under that
// number; the guest sees the kernel's result. Errors: ErrAnswered; EINVAL when the call is not close.
func (c *Call) Close() error {
	if c.Nr != unix.SYS_CLOSE {
		return unix.EINVAL
	}
	return c.end(response{Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

func (c *Call) end(answer response) error {
	g := c.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.done {
		return ErrAnswered
	}
	c.done, c.answer = true, answer
	if c.gone {
		return nil
	}
	if g.resend(c.TID) && answer.Flags == 0 {
		// The signals take the thread out of its wait, and the tracer puts the result into its registers, so
		// that the handlers run at the return of this call and not some instructions later.
		return nil
	}
	return g.send(c)
}

// Valid reports whether the call still waits for its answer.
func (c *Call) Valid() bool {
	g := c.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.done || c.gone {
		return false
	}
	if g.traced {
		return true // the tracer marks what is gone
	}
	id := c.id
	return ioctl(g.listener, notifIDValid, &id) == nil
}

// Interrupted returns a channel that is closed when a signal waits for the end of the call, or when its thread died. It never
// closes for a guest that is not traced (Guest.Traced).
func (c *Call) Interrupted() <-chan struct{} {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	if c.interrupted == nil {
		c.interrupted = make(chan struct{})
		if c.isIntr || c.gone {
			close(c.interrupted)
		}
	}
	return c.interrupted
}

// Install makes the supervisor's descriptor fd available to the guest's kernel under the number guestFD,
// replacing what was there, so that the guest can mmap it. It does not end the call, and only an unanswered call can do it.
// The guest can do with the descriptor what Native allows: map it, with the access mode it was opened with.
// Errors: ErrAnswered, ErrGone; EBADF when fd is not open or guestFD is not below Config.MaxFiles.
func (c *Call) Install(fd, guestFD int, cloexec bool) error {
	if guestFD < 0 || guestFD >= c.g.cfg.MaxFiles {
		return fmt.Errorf("process: descriptor %d, must be below %d: %w", guestFD, c.g.cfg.MaxFiles, unix.EBADF)
	}
	add := addFD{Flags: unix.SECCOMP_ADDFD_FLAG_SETFD, SrcFD: uint32(fd), NewFD: uint32(guestFD)}
	if cloexec {
		add.NewFDFlags = unix.O_CLOEXEC
	}
	g := c.g
	for {
		g.mu.Lock()
		if c.done || c.gone {
			done := c.done
			g.mu.Unlock()
			if done {
				return ErrAnswered
			}
			return ErrGone
		}
		add.ID = c.id
		if c.rebound == nil {
			c.rebound = make(chan struct{})
		}
		rebound := c.rebound
		g.mu.Unlock()

		// Not under the lock: the thread itself does the work and must first be scheduled.
		err := ioctl(g.listener, notifAddFD, &add)
		switch err {
		case unix.ENOENT, unix.ESRCH:
			if !g.traced && !c.Valid() {
				return ErrGone
			}
		case unix.EINPROGRESS, unix.EINTR:
		default:
			return err
		}
		if err == unix.ENOENT || err == unix.ESRCH {
			// A signal took the thread out of its wait; it is on its way back.
			if err := g.await(rebound); err != nil {
				return ErrGone
			}
		}
	}
}

// interrupt marks c when a signal is really withheld; g.mu is held.
func (c *Call) interrupt(really bool) {
	if c.isIntr || !really {
		return
	}
	c.isIntr = true
	if c.interrupted != nil {
		close(c.interrupted)
	}
}

// vanish marks c as gone; g.mu is held.
func (c *Call) vanish() {
	if c.gone {
		return
	}
	c.gone = true
	if c.interrupted != nil && !c.isIntr {
		close(c.interrupted)
	}
	if c.rebound != nil {
		close(c.rebound)
		c.rebound = nil
	}
}
