package sys

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/mm"
)

// Reserve puts host memory behind so much of the guest's memory, and keeps it there: from before Run on, or from any time later. It returns when it is there.
func (g *Guest) Reserve(bytes uint64) error {
	g.reserving.Lock()
	defer g.reserving.Unlock()
	before := g.reserved.Swap(bytes)
	err := g.space.Reserve(bytes, func(done uint64) { g.prefaulted.Store(min(done, bytes)) })
	if err != nil {
		g.reserved.Store(min(before, g.space.Usage().Reserved))
	}
	return err
}

// Reclaim bounds the guest's memory and returns what came of it, when the guest is within the bound.
func (g *Guest) Reclaim(r *hv.Reclaim) (*hv.Reclaimed, error) { return g.orders.carryOut(r, g) }

// memoryState describes the guest's memory.
func (g *Guest) memoryState() hv.MemoryState {
	u := g.space.Usage()
	m := hv.MemoryState{Reserved: g.reserved.Load(), Prefaulted: g.prefaulted.Load(), Used: u.Used}
	if u.Bound < u.Size {
		m.Bound = u.Bound
	}
	g.orders.addTo(&m)
	return m
}

// ask implements memoryOf.
func (g *Guest) ask(r *hv.Reclaim) (bound, target, used uint64) {
	bound, target = r.Resolve(g.space.Size(), g.reserved.Load())
	u := g.space.Ask(bound)
	return u.Bound, target, u.Used
}

// used implements memoryOf.
func (g *Guest) used() uint64 { return g.space.Used() }

// enforce implements memoryOf.
func (g *Guest) enforce(target uint64) (taken uint64, ok bool) {
	if g.space.Enforce() {
		return 0, true
	}
	before := g.space.Used()
	taken = g.space.Repossess(target, g.inUse())
	u := g.space.Usage()
	// What host code still works on goes later.
	if before-min(taken, before) <= u.Bound {
		return taken, true
	}
	g.finish(End{Cause: hv.CauseMemory, Message: fmt.Sprintf(
		"the guest was to keep %s of its memory, did not give back the rest, and only %s of it could be taken without harm to its program", mebibytes(u.Bound), mebibytes(taken))})
	return taken, false
}

// What lies so near to a thread's stack pointer and thread pointer is in use, in bytes.
const (
	stackBelow  = 64 << 10
	stackAbove  = 256 << 10
	aroundTLS   = 64 << 10
	maxAltStack = 1 << 20
)

// inUse returns what the threads stand on.
func (g *Guest) inUse() (list []mm.Piece) {
	g.mu.Lock()
	defer g.mu.Unlock()
	add := func(at, below, above uint64) {
		at &^= 4095
		start := at - min(below, at)
		list = append(list, mm.Piece{Start: start, Size: at + above - start})
	}
	g.signals.mu.Lock()
	defer g.signals.mu.Unlock()
	for _, t := range g.threads {
		add(t.stack.Load(), stackBelow, stackAbove)
		add(t.tls.Load(), aroundTLS, aroundTLS)
		if s := t.altStack; s.size > 0 {
			add(s.sp, 0, min(s.size, maxAltStack)+4096)
		}
	}
	return list
}

// lostMemory says why a guest ends that used memory which was taken from it.
func (g *Guest) lostMemory(addr uint64) End {
	u := g.space.Usage()
	return End{Cause: hv.CauseMemory, Signal: int(unix.SIGBUS), Message: fmt.Sprintf(
		"the guest was to keep %s of its memory and did not give back the rest; it used address %#x, which was taken by force", mebibytes(u.Bound), addr)}
}

// exitEnd is how a guest ends that exits by itself. A program in Go that does not survive the loss of memory exits with goThrow.
func (g *Guest) exitEnd(code int) End {
	if addr := g.lost.Load(); addr != 0 && code == goThrow && g.goRuntime {
		e := g.lostMemory(addr)
		e.Signal, e.Code = 0, code
		return e
	}
	return End{Cause: hv.CauseExit, Code: code}
}
