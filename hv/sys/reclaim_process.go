package sys

import (
	"errors"
	"fmt"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/mm"
)

// Reserve notes what is not to be asked for. The guest's memory is the host kernel's to give.
func (p *ProcessGuest) Reserve(bytes uint64) error {
	p.reserved.Store(bytes)
	return nil
}

// Reclaim does what Guest.Reclaim does, but for taking memory by force: the guest ends instead. What it uses is what the host's kernel says that it has.
func (p *ProcessGuest) Reclaim(r *hv.Reclaim) (*hv.Reclaimed, error) {
	if _, ok := p.guest.Resident(); !ok {
		return nil, errors.New("engine process: the host does not say what the guest uses")
	}
	return p.orders.carryOut(r, p)
}

// memoryState describes the guest's memory.
func (p *ProcessGuest) memoryState() hv.MemoryState {
	m := hv.MemoryState{Reserved: p.reserved.Load(), Used: p.used()}
	if p.reserved.Load() > 0 {
		m.Note = "engine process: the reserved memory is not prefaulted"
	}
	if b := p.bound.Load(); b < p.cfg.MemoryBytes {
		m.Bound = b
	}
	p.orders.addTo(&m)
	return m
}

// ask implements memoryOf.
func (p *ProcessGuest) ask(r *hv.Reclaim) (bound, target, used uint64) {
	bound, target = r.Resolve(p.cfg.MemoryBytes, p.reserved.Load())
	p.bound.Store(bound)
	return bound, target, p.used()
}

// used implements memoryOf.
func (p *ProcessGuest) used() uint64 {
	n, ok := p.guest.Resident()
	if ok {
		p.resident.Store(n)
	}
	return p.resident.Load() // the last that was known, of a guest that has ended
}

// enforce implements memoryOf.
func (p *ProcessGuest) enforce(uint64) (taken uint64, ok bool) {
	bound := p.bound.Load()
	if used := p.used(); used > bound {
		p.overdrawn(used, bound)
		return 0, false
	}
	if bound < p.cfg.MemoryBytes && p.watched.CompareAndSwap(false, true) {
		go p.watch()
	}
	return 0, true
}

// overdrawn ends the guest.
func (p *ProcessGuest) overdrawn(used, bound uint64) {
	p.mu.Lock()
	if p.end == nil {
		p.end = &End{Cause: hv.CauseMemory, Message: fmt.Sprintf("the guest was to keep %s of its memory and used %s; engine process cannot take the rest by force",
			mebibytes(bound), mebibytes(used))}
	}
	p.mu.Unlock()
	p.guest.Kill()
}

// watchEvery is how often a guest with a bound is looked at. The host's kernel has no limit of what a process uses without a cgroup.
const watchEvery = 200 * time.Millisecond

// watch keeps the guest to its bound until it has none any more, or ends.
func (p *ProcessGuest) watch() {
	defer p.watched.Store(false)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.guest.Done():
			return
		case <-tick.C:
		}
		p.orders.mu.Lock()
		bound, pending := p.bound.Load(), p.orders.pending
		p.orders.mu.Unlock()
		switch used := p.used(); {
		case bound >= p.cfg.MemoryBytes:
			return
		case !pending && used > bound:
			p.overdrawn(used, bound)
			return
		}
	}
}

// taken is the repossession vector: nothing is ever taken.
func (p *ProcessGuest) taken(int) ([]mm.Piece, int) { return nil, 0 }
