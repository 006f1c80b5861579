package sys

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// siginfoSize is the size of struct siginfo_t.
const siginfoSize = 128

// bytes returns the signal as the kernel's siginfo_t.
func (i siginfo) bytes() []byte {
	b := make([]byte, siginfoSize)
	le := binary.LittleEndian
	le.PutUint32(b[0:], uint32(i.signo))
	le.PutUint32(b[8:], uint32(i.code))
	le.PutUint64(b[16:], i.a)
	le.PutUint64(b[24:], i.b)
	return b
}

// rtSigtimedwait waits until one of a set of signals is pending, and takes it (sigwaitinfo(2)).
func (t *thread) rtSigtimedwait(a [6]uint64) (uint64, error) {
	if a[3] != 8 {
		return 0, unix.EINVAL
	}
	set, err := t.load64(a[0])
	if err != nil {
		return 0, err
	}
	set &^= unblockable
	timeout := forever
	if a[2] != 0 {
		if timeout, err = t.timespec(a[2]); err != nil {
			return 0, err
		}
	}
	info, err := t.awaitSignal(set, timeout)
	if err != nil {
		return 0, err
	}
	if a[1] != 0 {
		if err := t.g.space.CopyOut(a[1], info.bytes()); err != nil {
			return 0, err
		}
	}
	return uint64(info.signo), nil
}

// awaitSignal takes the first pending signal of set. Errors: unix.EAGAIN after timeout; unix.EINTR when another
// signal came.
func (t *thread) awaitSignal(set uint64, timeout time.Duration) (siginfo, error) {
	s := &t.g.signals
	s.mu.Lock()
	defer s.mu.Unlock()
	info, ok := t.takeOf(set)
	if ok || timeout == 0 {
		if !ok {
			return info, unix.EAGAIN
		}
		return info, nil
	}
	t.parked.arm()
	t.wanted = set // from now on, send interrupts this thread for them
	s.mu.Unlock()
	err := t.park(timeout)
	s.mu.Lock()
	t.wanted = 0
	if info, ok := t.takeOf(set); ok {
		return info, nil
	}
	if err == unix.ETIMEDOUT {
		err = unix.EAGAIN
	}
	if err == nil {
		err = unix.EINTR
	}
	return info, err
}

// rtSigqueueinfo sends a signal with a value of the sender's choice (rt_sigqueueinfo(2)): to the process, or with tid to
// one thread.
func (t *thread) rtSigqueueinfo(pid, tid, sig int32, addr uint64) (uint64, error) {
	var b [32]byte
	if err := t.g.space.CopyIn(addr, b[:]); err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	info := siginfo{signo: int(sig), code: int(int32(le.Uint32(b[8:]))), a: le.Uint64(b[16:]), b: le.Uint64(b[24:])}
	if pid < 1 {
		return 0, unix.ESRCH
	}
	return t.killWith(pid, tid, sig, info)
}
