package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/vcpu/qemu"
)

// memory is the guest's, and what came of orders to give some back.
type memory struct {
	ram        *os.File
	keepsFree  bool       // the guest does not give back by itself what it does not use
	reserving  sync.Mutex // held while reserved is changed
	reserved   atomic.Uint64
	prefaulted atomic.Uint64
	watched    atomic.Bool

	mu      sync.Mutex
	bound   uint64 // of what the guest may use; 0: its memory
	orders  uint64
	pending bool
	given   uint64
	why     string        // the guest ends: it used more than it may
	changed chan struct{} // closed and replaced with each order; nil before the first
}

// overdrawn says why the guest ends if it used more than it may.
func (m *memory) overdrawn() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.why
}

// reserve puts host memory behind so much of the guest's memory, and returns when it is there.
func (v *vm) reserve(ctx context.Context, bytes uint64) error {
	m := &v.memory
	m.reserving.Lock()
	defer m.reserving.Unlock()
	before := m.reserved.Swap(bytes)
	err := qemu.Populate(ctx, m.ram, int64(bytes), func(done int64) { m.prefaulted.Store(uint64(done)) })
	if err != nil {
		m.reserved.Store(min(before, bytes))
	}
	return err
}

// used returns how much host memory the guest has.
func (v *vm) used() uint64 {
	n, err := qemu.Allocated(v.memory.ram)
	if err != nil {
		return 0
	}
	return uint64(n)
}

// stats counts what the guest did so far.
func (v *vm) stats() hv.Stats {
	s := hv.Stats{MemoryBytes: v.spec.MemoryBytes}
	if v.memory.ram == nil {
		return s
	}
	s.MemoryUsed = v.used()
	m := &v.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Memory = hv.MemoryState{Reserved: m.reserved.Load(), Prefaulted: m.prefaulted.Load(), Used: s.MemoryUsed, Bound: m.bound, Orders: m.orders, Given: m.given, Pending: m.pending}
	if s.Memory.Reserved > 0 && !m.keepsFree {
		s.Memory.Note = "the guest gives back what it does not use, reserved or not, until its next start"
	}
	return s
}

// Times of an order.
const (
	lookEvery  = 20 * time.Millisecond  // how often a guest that was asked for memory is looked at
	watchEvery = 250 * time.Millisecond // and one that has a bound
	askLimit   = 5 * time.Second        // for QEMU to take an order
)

// reclaim has the guest keep to a bound, by its balloon. Nothing can be taken from a Linux guest by force without corrupting it: one that has not given in time ends.
func (v *vm) reclaim(r *hv.Reclaim) (*hv.Reclaimed, error) {
	if r == nil || r.WithinMs < 0 || r.WithinMs > hv.MaxReclaimMs {
		return nil, fmt.Errorf("no time to give memory back in, or not between 0 and %d ms", hv.MaxReclaimMs)
	}
	v.mu.Lock()
	machine := v.machine
	v.mu.Unlock()
	if machine == nil {
		return nil, errors.New("the machine is being set up")
	}
	started := time.Now()
	size := v.spec.MemoryBytes
	bound, target := r.Resolve(size, v.memory.reserved.Load())
	m := &v.memory
	m.mu.Lock()
	m.orders++
	id := m.orders
	before := v.used()
	if m.bound = bound; bound == size {
		m.bound = 0
	}
	m.pending = before > target
	if m.changed != nil {
		close(m.changed)
	}
	m.changed = make(chan struct{})
	changed := m.changed
	m.mu.Unlock()
	out := &hv.Reclaimed{Bound: bound, Target: target, Before: before}

	ctx, cancel := context.WithTimeout(v.ctx, askLimit)
	err := machine.Balloon(ctx, int64(target&^4095))
	cancel()
	if err != nil {
		return nil, err
	}
	select {
	case <-v.ready:
		out.Told = true
	default: // its kernel hears of it when it has the driver
	}
	deadline := time.NewTimer(time.Until(started.Add(time.Duration(r.WithinMs) * time.Millisecond)))
	defer deadline.Stop()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
wait:
	for v.used() > target {
		select {
		case <-tick.C:
		case <-changed:
			break wait
		case <-deadline.C:
			break wait
		case <-machine.Done():
			break wait
		}
	}
	m.mu.Lock()
	out.Stands(v.used())
	m.given += out.Given
	out.Superseded = m.orders != id
	out.Ms = float64(time.Since(started).Microseconds()) / 1000
	if !out.Superseded {
		m.pending = false
		out.Ended = out.After > bound && m.bound != 0
	}
	m.mu.Unlock()
	switch {
	case out.Ended:
		v.overdrawn(out.After, bound)
	case !out.Superseded && bound < size && m.watched.CompareAndSwap(false, true):
		go v.watchMemory(machine)
	}
	if out.Ended {
		return out, nil
	}
	// What its balloon punched out of the reserved part is put back: there is always host memory for that much.
	return out, qemu.Populate(v.ctx, m.ram, int64(m.reserved.Load()), nil)
}

// overdrawn ends a guest that uses more than it may.
func (v *vm) overdrawn(used, bound uint64) {
	v.memory.mu.Lock()
	if v.memory.why == "" {
		v.memory.why = fmt.Sprintf("the guest was to use no more than %d MiB of its memory and used %d MiB; taking the rest by force would have corrupted it", bound>>20, used>>20)
	}
	v.memory.mu.Unlock()
	v.kill()
}

// watchMemory keeps the guest to its bound until it has none any more, or ends: a guest can use what it has given back again.
func (v *vm) watchMemory(machine *qemu.VM) {
	defer v.memory.watched.Store(false)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-machine.Done():
			return
		case <-tick.C:
		}
		v.memory.mu.Lock()
		bound, pending := v.memory.bound, v.memory.pending
		v.memory.mu.Unlock()
		switch used := v.used(); {
		case bound == 0:
			return
		case !pending && used > bound:
			v.overdrawn(used, bound)
			return
		}
	}
}
