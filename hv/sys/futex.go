package sys

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// futexes are the guest's wait queues, by guest-virtual address. A futex in memory that two guests share is two
// futexes; between guests there are doorbells.
type futexes struct {
	mu     sync.Mutex
	queues map[uint64][]*futexWaiter
}

type futexWaiter struct {
	t    *thread
	addr uint64 // changes when it is requeued
	bits uint32
}

// wait blocks t until addr is woken for one of bits, if the word there is val.
func (f *futexes) wait(t *thread, addr uint64, val, bits uint32, timeout time.Duration) error {
	w := &futexWaiter{t: t, addr: addr, bits: bits}
	// Faulted in first, so that nothing slow happens under the lock.
	if _, err := t.g.space.Load32(addr); err != nil {
		return err
	}
	t.parked.arm()
	f.mu.Lock()
	v, err := t.g.space.Load32(addr)
	if err != nil || v != val {
		f.mu.Unlock()
		t.parked.disarm()
		if err == nil {
			err = unix.EAGAIN
		}
		return err
	}
	if f.queues == nil {
		f.queues = make(map[uint64][]*futexWaiter)
	}
	f.queues[addr] = append(f.queues[addr], w)
	f.mu.Unlock()
	err = t.park(timeout)
	if err != nil {
		f.mu.Lock()
		if !f.remove(w) {
			err = nil // a wake-up came first, and counted this thread
		}
		f.mu.Unlock()
	}
	return err
}

// remove takes w out of its queue. False means that a wake-up has done so. The caller holds f.mu.
func (f *futexes) remove(w *futexWaiter) bool {
	q := f.queues[w.addr]
	i := slices.Index(q, w)
	if i >= 0 {
		f.set(w.addr, slices.Delete(q, i, i+1))
	}
	return i >= 0
}

func (f *futexes) set(addr uint64, q []*futexWaiter) {
	if len(q) == 0 {
		delete(f.queues, addr)
	} else {
		f.queues[addr] = q
	}
}

// wake wakes up to n waiters of addr that wait for one of bits, oldest first, and returns how many.
func (f *futexes) wake(addr uint64, n int, bits uint32) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wakeLocked(addr, n, bits)
}

func (f *futexes) wakeLocked(addr uint64, n int, bits uint32) int {
	q := f.queues[addr]
	woken := 0
	q = slices.DeleteFunc(q, func(w *futexWaiter) bool {
		if woken >= n || w.bits&bits == 0 {
			return false
		}
		woken++
		w.t.parked.wake()
		return true
	})
	f.set(addr, q)
	return woken
}

// requeue wakes n waiters of addr and moves up to m more to target. With compare, the word at addr must be val.
func (f *futexes) requeue(t *thread, addr, target uint64, n, m int, compare bool, val uint32) (int, error) {
	if _, err := t.g.space.Load32(addr); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if compare {
		if v, err := t.g.space.Load32(addr); err != nil {
			return 0, err
		} else if v != val {
			return 0, unix.EAGAIN
		}
	}
	done := f.wakeLocked(addr, n, ^uint32(0))
	if addr == target {
		return done, nil
	}
	q := f.queues[addr]
	m = min(m, len(q))
	for _, w := range q[:m] {
		w.addr = target
		f.queues[target] = append(f.queues[target], w)
	}
	f.set(addr, slices.Delete(q, 0, m))
	return done + m, nil
}

// Futex operations (Linux include/uapi/linux/futex.h).
const (
	futexWaitOp        = 0
	futexWakeOp        = 1
	futexRequeueOp     = 3
	futexCmpRequeueOp  = 4
	futexWakeOpOp      = 5
	futexWaitBitsetOp  = 9
	futexWakeBitsetOp  = 10
	futexPrivateFlag   = 128
	futexClockRealtime = 256
)

// futex serves futex(2). Priority inheritance does not exist here.
func (t *thread) futex(a [6]uint64) (uint64, error) {
	g := t.g
	addr, op, val := a[0], a[1]&^(futexPrivateFlag|futexClockRealtime), uint32(a[2])
	if addr&3 != 0 {
		return 0, unix.EINVAL
	}
	switch op {
	case futexWaitOp, futexWaitBitsetOp:
		bits := ^uint32(0)
		if op == futexWaitBitsetOp {
			if bits = uint32(a[5]); bits == 0 {
				return 0, unix.EINVAL
			}
		}
		timeout := forever
		if a[3] != 0 {
			d, err := t.timespec(a[3])
			if err != nil {
				return 0, err
			}
			if op == futexWaitBitsetOp { // absolute
				clock := int32(unix.CLOCK_MONOTONIC)
				if a[1]&futexClockRealtime != 0 {
					clock = unix.CLOCK_REALTIME
				}
				d -= now(clock)
			}
			timeout = max(d, 0)
		}
		return 0, g.futexes.wait(t, addr, val, bits, timeout)
	case futexWakeOp:
		return uint64(g.futexes.wake(addr, count(val), ^uint32(0))), nil
	case futexWakeBitsetOp:
		if uint32(a[5]) == 0 {
			return 0, unix.EINVAL
		}
		return uint64(g.futexes.wake(addr, count(val), uint32(a[5]))), nil
	case futexRequeueOp, futexCmpRequeueOp:
		n, err := g.futexes.requeue(t, addr, a[4], count(val), count(uint32(a[3])), op == futexCmpRequeueOp, uint32(a[5]))
		return uint64(n), err
	case futexWakeOpOp:
		return t.futexWakeOp(a)
	}
	return 0, unix.ENOSYS
}

// count reads a number of threads, which Linux takes as signed.
func count(v uint32) int { return max(0, int(int32(v))) }

// futexWakeOp changes the word at a[4] as a[5] says, then wakes waiters of a[0], and of a[4] if the old value
// compares so (futex(2), FUTEX_WAKE_OP).
func (t *thread) futexWakeOp(a [6]uint64) (uint64, error) {
	code := uint32(a[5])
	op, cmp := code>>28, code>>24&15
	arg, cmpArg := int32(code<<8)>>20, int32(code<<20)>>20
	if op&8 != 0 {
		arg = 1 << (uint32(arg) & 31)
	}
	var old uint32
	for {
		v, err := t.g.space.Load32(a[4])
		if err != nil {
			return 0, err
		}
		next := uint32(arg)
		switch op & 7 {
		case 0:
		case 1:
			next = v + uint32(arg)
		case 2:
			next = v | uint32(arg)
		case 3:
			next = v &^ uint32(arg)
		case 4:
			next = v ^ uint32(arg)
		default:
			return 0, unix.ENOSYS
		}
		ok, err := t.g.space.Swap32(a[4], v, next)
		if err != nil {
			return 0, err
		}
		if ok {
			old = v
			break
		}
	}
	holds := [...]bool{
		int32(old) == cmpArg, int32(old) != cmpArg, int32(old) < cmpArg,
		int32(old) <= cmpArg, int32(old) > cmpArg, int32(old) >= cmpArg,
	}
	if int(cmp) >= len(holds) {
		return 0, unix.ENOSYS
	}
	n := t.g.futexes.wake(a[0], count(uint32(a[2])), ^uint32(0))
	if holds[cmp] {
		n += t.g.futexes.wake(a[4], count(uint32(a[3])), ^uint32(0))
	}
	return uint64(n), nil
}
