package sys

import (
	"time"

	"golang.org/x/sys/unix"
)

// timespec reads a struct timespec. Errors: EFAULT, EINVAL.
func (t *thread) timespec(addr uint64) (time.Duration, error) {
	first, _, err := t.times(addr, time.Nanosecond)
	return first, err
}

// twoTimes reads an itimerspec (unit: ns) or an itimerval (unit: µs): interval, then value.
func (t *thread) twoTimes(addr uint64, unit time.Duration) (interval, value time.Duration, err error) {
	if interval, _, err = t.times(addr, unit); err != nil {
		return 0, 0, err
	}
	value, _, err = t.times(addr+16, unit)
	return interval, value, err
}

func (t *thread) times(addr uint64, unit time.Duration) (d time.Duration, sec int64, err error) {
	s, err := t.load64(addr)
	if err != nil {
		return 0, 0, err
	}
	f, err := t.load64(addr + 8)
	if err != nil {
		return 0, 0, err
	}
	if int64(s) < 0 || f >= uint64(time.Second/unit) {
		return 0, 0, unix.EINVAL
	}
	if s >= uint64(forever/time.Second) {
		return forever - 1, int64(s), nil // longer than anyone will wait
	}
	return time.Duration(s)*time.Second + time.Duration(f)*unit, int64(s), nil
}

func (t *thread) storeTimespec(addr uint64, interval, value time.Duration) error {
	return t.store64(addr, uint64(interval/time.Second), uint64(interval%time.Second),
		uint64(value/time.Second), uint64(value%time.Second))
}

func (t *thread) storeTimeval(addr uint64, interval, value time.Duration) error {
	return t.store64(addr, uint64(interval/time.Second), uint64(interval%time.Second/time.Microsecond),
		uint64(value/time.Second), uint64(value%time.Second/time.Microsecond))
}

// timerSlack is how late a sleep may end: Linux's default.
const timerSlack = 50 * time.Microsecond

// goSlack is the same for the sleeps of the thread with which Go's runtime looks after the others (runtime.sysmon): every 20 µs as long as they are busy,
// it would take a tenth of a processor for that in exits.
const goSlack = 4 * time.Millisecond

// ofGoMonitor reports whether a sleep takes as long as those of that thread: 20 µs at first, twice as long each time after a while, and no longer than
// 10 ms. Goroutines sleep in futex and epoll_wait; who calls nanosleep itself means another time, up to which it wants to sleep.
func ofGoMonitor(d time.Duration) bool {
	const first, last = 20 * time.Microsecond, 10 * time.Millisecond
	for s := first; s < last; s *= 2 {
		if d == s {
			return true
		}
	}
	return d == last
}

// sleep serves nanosleep and clock_nanosleep.
func (t *thread) sleep(clock int32, absolute bool, req, rem uint64) (uint64, error) {
	d, err := t.timespec(req)
	if err != nil {
		return 0, err
	}
	switch clock {
	case unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME:
	default:
		return 0, unix.EINVAL
	}
	if absolute {
		d -= now(clock)
	}
	if d <= 0 {
		return 0, nil
	}
	// A short sleep of a Linux process takes that much longer as well (prctl(2), PR_SET_TIMERSLACK); here each one is an exit.
	if t.g.goRuntime && ofGoMonitor(d) {
		d += goSlack
	} else {
		d += timerSlack
	}
	end := time.Now().Add(d)
	t.parked.arm()
	err = t.park(d)
	if err == unix.ETIMEDOUT {
		return 0, nil
	}
	if err == unix.EINTR && rem != 0 && !absolute {
		left := max(time.Until(end), 0)
		if err := t.store64(rem, uint64(left/time.Second), uint64(left%time.Second)); err != nil {
			return 0, err
		}
	}
	return 0, err
}

// readClock serves the calls that read a clock; the vDSO spares most of them.
func (t *thread) readClock(nr uint64, a [6]uint64) (uint64, error) {
	switch nr {
	case unix.SYS_GETTIMEOFDAY:
		if a[0] == 0 {
			return 0, nil
		}
		ns := now(unix.CLOCK_REALTIME)
		return 0, t.store64(a[0], uint64(ns/time.Second), uint64(ns%time.Second/time.Microsecond))
	case unix.SYS_TIME:
		s := uint64(now(unix.CLOCK_REALTIME) / time.Second)
		if a[0] != 0 {
			return s, t.store64(a[0], s)
		}
		return s, nil
	case unix.SYS_TIMES:
		ticks := uint64(now(unix.CLOCK_PROCESS_CPUTIME_ID) / (10 * time.Millisecond))
		if a[0] != 0 {
			if err := t.store64(a[0], ticks, 0, 0, 0); err != nil {
				return 0, err
			}
		}
		return uint64(now(unix.CLOCK_MONOTONIC) / (10 * time.Millisecond)), nil
	}
	clock := int32(a[0])
	switch clock {
	case unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC, unix.CLOCK_REALTIME_COARSE, unix.CLOCK_MONOTONIC_COARSE,
		unix.CLOCK_MONOTONIC_RAW, unix.CLOCK_BOOTTIME, unix.CLOCK_TAI,
		unix.CLOCK_PROCESS_CPUTIME_ID, unix.CLOCK_THREAD_CPUTIME_ID: // the vCPU's host thread is this one
	default:
		return 0, unix.EINVAL
	}
	if nr == unix.SYS_CLOCK_GETRES {
		if a[1] == 0 {
			return 0, nil
		}
		return 0, t.store64(a[1], 0, 1)
	}
	ns := now(clock)
	return 0, t.store64(a[1], uint64(ns/time.Second), uint64(ns%time.Second))
}
