package sys

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/mm"
	"github.com/grailos/grail/hv/vfs"
)

// orders is what a guest is told about memory that the host wants back, and what came of it.
type orders struct {
	bell int // eventfd, rung with each order

	mu      sync.Mutex
	now     abi.Order // the last one; ID 0: there was none
	pending bool
	waiting bool          // a thread of the guest waits for the next one
	done    uint64        // ID of the order for which the program has said that it gave what it could
	changed chan struct{} // closed and replaced when now or done changes
	excess  func() uint64 // what the guest uses now beyond what it was told to keep
	given   uint64
	taken   uint64
}

// memoryOf is an engine's hold on its guest's memory.
type memoryOf interface {
	// ask bounds what the guest may use, and returns the bound that holds, how much it is to keep, and what it uses. It may use that until enforce.
	ask(r *hv.Reclaim) (bound, target, used uint64)
	used() uint64
	// enforce takes what the guest uses beyond the target if it is beyond the bound, and returns how much that was. False: that was not enough, and the guest ends.
	enforce(target uint64) (taken uint64, ok bool)
}

func (o *orders) open() (err error) {
	o.changed = make(chan struct{})
	if o.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

// change tells those who wait on the host's side. The caller holds o.mu.
func (o *orders) change() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// lookEvery is how often a guest that was asked for memory is looked at.
const lookEvery = 5 * time.Millisecond

// carryOut tells the guest, waits until it is within the bound, has done what it could, or had the time to, and enforces the bound.
func (o *orders) carryOut(r *hv.Reclaim, m memoryOf) (*hv.Reclaimed, error) {
	if r == nil || r.WithinMs < 0 || r.WithinMs > hv.MaxReclaimMs {
		return nil, fmt.Errorf("no time to give memory back in, or not between 0 and %d ms", hv.MaxReclaimMs)
	}
	started := time.Now()
	deadline := started.Add(time.Duration(r.WithinMs) * time.Millisecond)
	o.mu.Lock()
	bound, target, before := m.ask(r)
	id := o.now.ID + 1
	o.now = abi.Order{ID: id, Bytes: target, Used: before}
	if o.pending = before > target; o.pending {
		o.now.Deadline = uint64(now(unix.CLOCK_MONOTONIC) + time.Until(deadline))
	}
	o.excess = func() uint64 { return max(m.used(), target) - target }
	out := &hv.Reclaimed{Bound: bound, Target: target, Before: before, Told: o.waiting}
	o.change()
	o.mu.Unlock()
	one := [8]byte{1}
	_, _ = unix.Write(o.bell, one[:]) // full: it is rung

	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for m.used() > target && time.Now().Before(deadline) {
		o.mu.Lock()
		changed, over := o.changed, o.now.ID != id || o.done == id
		o.mu.Unlock()
		if over {
			break
		}
		select {
		case <-changed:
		case <-tick.C:
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	out.Stands(m.used())
	if out.Superseded = o.now.ID != id; !out.Superseded {
		var ok bool
		out.Taken, ok = m.enforce(target)
		out.Ended = !ok
		out.After = m.used()
		o.pending = false
	}
	o.given += out.Given
	o.taken += out.Taken
	out.Ms = float64(time.Since(started).Microseconds()) / 1000
	return out, nil
}

// addTo describes the orders so far.
func (o *orders) addTo(m *hv.MemoryState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	m.Orders, m.Given, m.Taken, m.Pending = o.now.ID, o.given, o.taken, o.pending
}

// syscall serves abi.SysReclaim. taken returns the repossession vector.
func (o *orders) syscall(mem vfs.Mem, w vfs.Waiter, a [6]uint64, taken func(limit int) ([]mm.Piece, int)) (uint64, error) {
	switch a[0] {
	case abi.ReclaimWait:
		order, err := o.wait(w, a[2])
		if err != nil {
			return 0, err
		}
		var b [abi.OrderSize]byte
		for i, v := range []uint64{order.ID, order.Bytes, order.Used, order.Deadline} {
			binary.LittleEndian.PutUint64(b[8*i:], v)
		}
		return 0, mem.CopyOut(a[1], b[:])
	case abi.ReclaimDone:
		o.mu.Lock()
		defer o.mu.Unlock()
		if a[1] == 0 || a[1] != o.now.ID {
			return 0, unix.ESRCH
		}
		if a[2] > 1 {
			return 0, unix.EINVAL
		}
		if a[2] == 1 {
			o.done = a[1]
			o.change()
		}
		return o.excess(), nil
	case abi.ReclaimTaken:
		list, all := taken(int(min(a[2], abi.MaxTaken)))
		b := make([]byte, 0, abi.RangeSize*len(list))
		for _, p := range list {
			b = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(b, p.Start), p.Size)
		}
		if len(b) > 0 {
			if err := mem.CopyOut(a[1], b); err != nil {
				return 0, err
			}
		}
		return uint64(all), nil
	}
	return 0, unix.EINVAL
}

// wait returns the present order once it is another than the known one.
func (o *orders) wait(w vfs.Waiter, known uint64) (abi.Order, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting {
		return abi.Order{}, unix.EBUSY
	}
	o.waiting = true
	defer func() { o.waiting = false }()
	for o.now.ID == 0 || o.now.ID == known {
		o.mu.Unlock()
		_, err := w.Poll([]unix.PollFd{{Fd: int32(o.bell), Events: unix.POLLIN}}, -1)
		if err == nil {
			var b [8]byte
			_, _ = unix.Read(o.bell, b[:])
		}
		o.mu.Lock()
		if err != nil {
			return abi.Order{}, err
		}
	}
	return o.now, nil
}
