package sys

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// timers are the guest's interval and POSIX timers. Timers on CPU time run on the monotonic clock: they exist
// for profilers, which do not mind.
type timers struct {
	guest *Guest

	mu     sync.Mutex
	real   *timer // ITIMER_REAL
	posix  map[int32]*timer
	lastID int32
}

// timer sends a signal when it expires.
type timer struct {
	g        *Guest
	info     siginfo
	silent   bool
	target   int // thread, 0: the process
	clock    int32
	mu       sync.Mutex
	t        *time.Timer
	next     time.Time
	interval time.Duration
}

// minInterval bounds how often a timer may fire, so that it costs the guest and not the host.
const minInterval = 100 * time.Microsecond

// maxTimers bounds the POSIX timers of a guest.
const maxTimers = 1024

// set arms the timer for d from now, again every interval; d = 0 disarms it. It returns what was set.
func (tm *timer) set(d, interval time.Duration) (left, was time.Duration) {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	left, was = tm.leftLocked(), tm.interval
	if tm.t != nil {
		tm.t.Stop()
		tm.t = nil
	}
	if interval > 0 {
		interval = max(interval, minInterval)
	}
	tm.interval = interval
	if d > 0 {
		tm.next = time.Now().Add(d)
		tm.t = time.AfterFunc(d, tm.fire)
	}
	return left, was
}

func (tm *timer) leftLocked() time.Duration {
	if tm.t == nil {
		return 0
	}
	return max(time.Until(tm.next), 1)
}

func (tm *timer) left() (left, interval time.Duration) {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	return tm.leftLocked(), tm.interval
}

func (tm *timer) fire() {
	tm.mu.Lock()
	if tm.t == nil {
		tm.mu.Unlock()
		return
	}
	if tm.interval > 0 {
		tm.next = time.Now().Add(tm.interval)
		tm.t.Reset(tm.interval)
	} else {
		tm.t = nil
	}
	tm.mu.Unlock()
	if tm.silent {
		return
	}
	var target *thread
	if tm.target != 0 {
		tm.g.mu.Lock()
		target = tm.g.threads[tm.target]
		tm.g.mu.Unlock()
		if target == nil {
			return
		}
	}
	tm.g.signals.send(target, tm.info)
}

func (ts *timers) stopAll() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.real != nil {
		ts.real.set(0, 0)
	}
	for _, tm := range ts.posix {
		tm.set(0, 0)
	}
}

func (ts *timers) realTimer() *timer {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.real == nil {
		ts.real = &timer{g: ts.guest, info: siginfo{signo: int(unix.SIGALRM), code: siKernel}}
	}
	return ts.real
}

func (ts *timers) find(id int32) (*timer, error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if tm := ts.posix[id]; tm != nil {
		return tm, nil
	}
	return nil, unix.EINVAL
}

// timerCall serves the timer system calls.
func (t *thread) timerCall(nr uint64, a [6]uint64) (uint64, error) {
	ts := &t.g.timers
	switch nr {
	case unix.SYS_ALARM:
		left, _ := ts.realTimer().set(time.Duration(uint32(a[0]))*time.Second, 0)
		return uint64((left + time.Second - 1) / time.Second), nil
	case unix.SYS_GETITIMER:
		if a[0] != 0 {
			return 0, t.store64(a[1], 0, 0, 0, 0)
		}
		left, interval := ts.realTimer().left()
		return 0, t.storeTimeval(a[1], interval, left)
	case unix.SYS_SETITIMER:
		if a[0] != 0 { // ITIMER_VIRTUAL, ITIMER_PROF
			return 0, unix.EINVAL
		}
		interval, value, err := t.twoTimes(a[1], time.Microsecond)
		if err != nil {
			return 0, err
		}
		left, was := ts.realTimer().set(value, interval)
		if a[2] == 0 {
			return 0, nil
		}
		return 0, t.storeTimeval(a[2], was, left)
	case unix.SYS_TIMER_CREATE:
		return t.timerCreate(a)
	}
	tm, err := ts.find(int32(a[0]))
	if err != nil {
		return 0, err
	}
	switch nr {
	case unix.SYS_TIMER_SETTIME:
		interval, value, err := t.twoTimes(a[2], time.Nanosecond)
		if err != nil {
			return 0, err
		}
		if a[1]&1 != 0 && value > 0 { // TIMER_ABSTIME
			value = max(value-now(tm.clock), 1)
		}
		left, was := tm.set(value, interval)
		if a[3] == 0 {
			return 0, nil
		}
		return 0, t.storeTimespec(a[3], was, left)
	case unix.SYS_TIMER_GETTIME:
		left, interval := tm.left()
		return 0, t.storeTimespec(a[1], interval, left)
	case unix.SYS_TIMER_DELETE:
		tm.set(0, 0)
		ts.mu.Lock()
		delete(ts.posix, int32(a[0]))
		ts.mu.Unlock()
	}
	return 0, nil // TIMER_GETOVERRUN: none are counted
}

// struct sigevent: value, signo, notify, thread id.
const (
	sigevSize     = 64
	sigevNone     = 1
	sigevThreadID = 4
)

func (t *thread) timerCreate(a [6]uint64) (uint64, error) {
	ts := &t.g.timers
	tm := &timer{g: t.g, info: siginfo{signo: int(unix.SIGALRM), code: siTimer}, clock: unix.CLOCK_MONOTONIC}
	if int32(a[0]) == unix.CLOCK_REALTIME {
		tm.clock = unix.CLOCK_REALTIME
	}
	var value uint64
	if a[1] != 0 {
		var b [sigevSize]byte
		if err := t.g.space.CopyIn(a[1], b[:]); err != nil {
			return 0, err
		}
		le := binary.LittleEndian
		value = le.Uint64(b[0:])
		tm.info.signo = int(int32(le.Uint32(b[8:])))
		notify := le.Uint32(b[12:])
		tm.silent = notify == sigevNone
		if notify == sigevThreadID {
			tm.target = int(int32(le.Uint32(b[16:])))
		}
		if !tm.silent && (tm.info.signo < 1 || tm.info.signo > numSignals) {
			return 0, unix.EINVAL
		}
	}
	ts.mu.Lock()
	if len(ts.posix) >= maxTimers {
		ts.mu.Unlock()
		return 0, unix.EAGAIN
	}
	if ts.posix == nil {
		ts.posix = make(map[int32]*timer)
	}
	ts.lastID++
	id := ts.lastID
	tm.info.a = uint64(uint32(id)) // si_tid, si_overrun
	tm.info.b = value
	ts.posix[id] = tm
	ts.mu.Unlock()
	return 0, t.store32(a[2], uint32(id))
}
