package guest

import (
	"math/bits"
	"slices"
	"sync"
)

// poolUnit is the smallest piece that the pool hands out, in bytes: a page, so that device I/O is aligned.
const poolUnit = 4096

// pool hands out pieces of a grant: a buddy allocator, of which callers wait in order when it is empty. It is
// safe for concurrent use.
type pool struct {
	mu    sync.Mutex
	base  uint64        // grant offset of unit 0
	units int           // units managed
	free  [][]int       // by order: first units of the free pieces
	state []uint8       // by unit: 0 not the start of a free piece, else its order + 1
	where []int32       // by unit: its place in its free list, valid while state is not 0
	queue []*poolWaiter // callers that wait, oldest first
	idle  []*poolWaiter // waiters to be reused
}

type poolWaiter struct {
	order int
	unit  int
	ready chan struct{}
}

// newPool manages size bytes from grant offset base on, rounded down to whole units.
func newPool(base, size uint64) *pool {
	p := &pool{base: base, units: int(size / poolUnit)}
	p.state, p.where = make([]uint8, p.units), make([]int32, p.units)
	p.free = make([][]int, bits.Len(uint(p.units)))
	for u := 0; u < p.units; {
		order := len(p.free) - 1
		for u&(1<<order-1) != 0 || u+1<<order > p.units {
			order--
		}
		p.put(u, order)
		u += 1 << order
	}
	return p
}

// max returns the largest size that alloc can ever satisfy, in bytes.
func (p *pool) max() uint64 {
	if p.units == 0 {
		return 0
	}
	return poolUnit << (bits.Len(uint(p.units)) - 1)
}

func orderOf(size uint64) int {
	units := (size + poolUnit - 1) / poolUnit
	return bits.Len64(max(units, 1) - 1)
}

// alloc returns the grant offset of at least size bytes, and waits until there are some. Precondition: size
// is at most max().
func (p *pool) alloc(size uint64) uint64 {
	order := orderOf(size)
	p.mu.Lock()
	if len(p.queue) == 0 {
		if u, ok := p.take(order); ok {
			p.mu.Unlock()
			return p.base + uint64(u)*poolUnit
		}
	}
	var w *poolWaiter
	if n := len(p.idle); n > 0 {
		w, p.idle = p.idle[n-1], p.idle[:n-1]
	} else {
		w = &poolWaiter{ready: make(chan struct{}, 1)}
	}
	w.order = order
	p.queue = append(p.queue, w)
	p.mu.Unlock()
	<-w.ready
	p.mu.Lock()
	u := w.unit
	p.idle = append(p.idle, w)
	p.mu.Unlock()
	return p.base + uint64(u)*poolUnit
}

// tryAlloc is alloc for callers that must not wait.
func (p *pool) tryAlloc(size uint64) (uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		return 0, false
	}
	u, ok := p.take(orderOf(size))
	return p.base + uint64(u)*poolUnit, ok
}

// release gives back what alloc(size) returned, and serves those who wait.
func (p *pool) release(off, size uint64) {
	p.mu.Lock()
	p.put(int((off-p.base)/poolUnit), orderOf(size))
	for len(p.queue) > 0 {
		w := p.queue[0]
		u, ok := p.take(w.order)
		if !ok {
			break
		}
		w.unit = u
		p.queue = slices.Delete(p.queue, 0, 1)
		w.ready <- struct{}{}
	}
	p.mu.Unlock()
}

// take removes a free piece of the given order, splitting a larger one when needed.
func (p *pool) take(order int) (unit int, ok bool) {
	for o := order; o < len(p.free); o++ {
		n := len(p.free[o])
		if n == 0 {
			continue
		}
		u := p.free[o][n-1]
		p.free[o] = p.free[o][:n-1]
		p.state[u] = 0
		for o > order {
			o--
			p.push(u+1<<o, o)
		}
		return u, true
	}
	return 0, false
}

// put frees a piece and joins it with its buddies.
func (p *pool) put(u, order int) {
	for order+1 < len(p.free) {
		buddy := u ^ 1<<order
		if buddy+1<<order > p.units || p.state[buddy] != uint8(order+1) {
			break
		}
		list := p.free[order]
		last := list[len(list)-1]
		list[p.where[buddy]], p.where[last] = last, p.where[buddy]
		p.free[order] = list[:len(list)-1]
		p.state[buddy] = 0
		u &^= 1 << order
		order++
	}
	p.push(u, order)
}

func (p *pool) push(u, order int) {
	p.where[u] = int32(len(p.free[order]))
	p.free[order] = append(p.free[order], u)
	p.state[u] = uint8(order + 1)
}
