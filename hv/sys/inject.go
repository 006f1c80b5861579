package sys

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
	"github.com/grailos/grail/hv/inject"
	"github.com/grailos/grail/hv/mm"
	"github.com/grailos/grail/vcpu/kvm"
)

// strike is a fault that a thread is to make in itself, between two stays in the guest.
type strike struct {
	do   func(*thread) error
	done chan error
}

// strikeWait is how long a thread may take until it is there: one in a call to the host's disk takes as long as that.
const strikeWait = 200 * time.Millisecond

// struck makes the fault that waits for the thread, and reports whether there was one.
func (t *thread) struck() bool {
	s := t.fault.Swap(nil)
	if s != nil {
		s.done <- s.do(t)
	}
	return s != nil
}

// Inject makes a fault of a kind that is not armed. The order was checked.
func (g *Guest) Inject(o *inject.Order) (inject.Hit, error) {
	random := o.Random()
	hit := inject.Hit{Bias: g.bias}
	var err error
	switch o.Fault {
	case inject.Exception:
		err = g.except(o, random, &hit)
	case inject.Flip:
		err = g.flip(o, random, &hit)
	case inject.Memory:
		hit.What = fmt.Sprintf("took %d KiB of the VM's memory; %d KiB are left", g.space.Take(o.Leave)>>10, (g.space.Size()-g.space.Used())>>10)
	case inject.Clock:
		by := g.clock.jump(o.Jump(), o.How == inject.Realtime)
		what := map[string]string{inject.Both: "the clocks jumped", inject.Realtime: "real time jumped"}[o.How]
		if what == "" {
			return hit, inject.ErrUnsupported
		}
		hit.What = fmt.Sprintf("%s by %v", what, by)
	default:
		return hit, inject.ErrUnsupported
	}
	return hit, err
}

// anyThread has one of the threads run do; which one is random among those that get there in time.
func (g *Guest) anyThread(random *rand.Rand, do func(*thread) error) error {
	g.mu.Lock()
	threads := slices.Collect(maps.Values(g.threads))
	g.mu.Unlock()
	if len(threads) == 0 {
		return inject.ErrNoThread
	}
	slices.SortFunc(threads, func(a, b *thread) int { return a.tid - b.tid })
	random.Shuffle(len(threads), func(i, j int) { threads[i], threads[j] = threads[j], threads[i] })
	for _, t := range threads {
		s := &strike{do: do, done: make(chan error, 1)}
		if !t.fault.CompareAndSwap(nil, s) {
			continue
		}
		t.interrupt()
		limit := time.NewTimer(strikeWait)
		select {
		case err := <-s.done:
			limit.Stop()
			return err
		case <-limit.C:
		}
		if !t.fault.CompareAndSwap(s, nil) { // it has just begun
			return <-s.done
		}
	}
	return fmt.Errorf("none of %d threads could be stopped within %v: they are in calls of the host", len(threads), strikeWait)
}

// emulated says that the VMM delivers what the CPU's exception would.
const emulated = "emulated, since no instruction raises it here"

// except has a thread take an exception.
func (g *Guest) except(o *inject.Order, random *rand.Rand, hit *inject.Hit) error {
	e, i := amd64.LookupException(o.How)
	if e == nil {
		return fmt.Errorf("no exception is named %q", o.How)
	}
	return g.anyThread(random, func(t *thread) error {
		r := t.cpu.Regs()
		hit.Code = []uint64{r.RIP}
		if e.Code == nil {
			hit.What = fmt.Sprintf("thread %d took #%s at %#x (%s)", t.tid, e.Name, r.RIP, emulated)
			t.trap(kvm.Exit{Kind: kvm.ExitException, Vector: e.Vector}, nil)
			return nil
		}
		hit.What = fmt.Sprintf("thread %d executes %s at %#x (#%s)", t.tid, e.Text, r.RIP, e.Name)
		// As if the program had called the code: its own traceback leads on to where the thread was.
		if t.store64(r.RSP-8, r.RIP) == nil {
			r.RSP -= 8
		}
		r.RIP = amd64.ExceptionCode(i)
		r.RFLAGS |= e.Flags
		t.cpu.Restore()
		return nil
	})
}

// flip inverts bits of the guest's state.
func (g *Guest) flip(o *inject.Order, random *rand.Rand, hit *inject.Hit) error {
	switch o.How {
	case inject.Code:
		return inject.FlipBits(random, o.Bits, pieces(g.space.Code()), g.space.Flip, "code", hit)
	case inject.Data:
		return inject.FlipBits(random, o.Bits, pieces(g.space.Data()), g.space.Flip, "data", hit)
	}
	return g.anyThread(random, func(t *thread) error {
		r := t.cpu.Regs()
		if o.How == inject.Stack {
			hit.Code = []uint64{r.RIP}
			return inject.FlipBits(random, o.Bits, g.stack(r.RSP), g.space.Flip, fmt.Sprintf("stack of thread %d, at %#x", t.tid, r.RIP), hit)
		}
		hit.What = inject.FlipRegisters(random, o.Bits, registers(r), fmt.Sprintf("thread %d, at %#x", t.tid, r.RIP))
		t.cpu.Restore()
		return nil
	})
}

// registers names what FlipRegisters may change.
func registers(r *amd64.Regs) []inject.Register {
	return []inject.Register{
		{Name: "rax", Value: &r.RAX}, {Name: "rbx", Value: &r.RBX}, {Name: "rcx", Value: &r.RCX}, {Name: "rdx", Value: &r.RDX}, {Name: "rsi", Value: &r.RSI},
		{Name: "rdi", Value: &r.RDI}, {Name: "rsp", Value: &r.RSP}, {Name: "rbp", Value: &r.RBP}, {Name: "r8", Value: &r.R8}, {Name: "r9", Value: &r.R9},
		{Name: "r10", Value: &r.R10}, {Name: "r11", Value: &r.R11}, {Name: "r12", Value: &r.R12}, {Name: "r13", Value: &r.R13}, {Name: "r14", Value: &r.R14},
		{Name: "r15", Value: &r.R15}, {Name: "rip", Value: &r.RIP}, {Name: "rflags", Value: &r.RFLAGS},
	}
}

func pieces(list []mm.Piece) []inject.Piece {
	out := make([]inject.Piece, len(list))
	for i, p := range list {
		out[i] = inject.Piece(p)
	}
	return out
}

// stack returns the part of a stack that is in use, as far as it is the guest's own memory.
func (g *Guest) stack(sp uint64) []inject.Piece {
	return inject.Within(pieces(g.space.Data()), sp, inject.StackBytes)
}

// serveFaulty serves a system call while a fault is armed.
func (t *thread) serveFaulty(f *inject.Armed, nr uint64, a [6]uint64) (uint64, error) {
	fate := f.OfCall(nr, a[1])
	switch {
	case fate.Hang:
		for !t.g.ending() {
			if _, err := t.Poll(nil, -1); err != nil {
				time.Sleep(time.Millisecond) // a signal is due, which has to wait
			}
		}
		return 0, unix.EINTR
	case fate.Errno != 0:
		return 0, fate.Errno
	case fate.Delay > 0:
		end := time.Now().Add(fate.Delay)
		for left := fate.Delay; left > 0 && !t.g.ending(); left = time.Until(end) {
			if _, err := t.Poll(nil, left); err != nil {
				time.Sleep(min(left, time.Millisecond))
			}
		}
	}
	return t.serve(nr, a)
}
