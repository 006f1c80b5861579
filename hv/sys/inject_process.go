package sys

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
	"github.com/grailos/grail/hv/inject"
	"github.com/grailos/grail/vcpu/process"
)

// Inject makes a fault of a kind that is not armed. The order was checked. Memory and clocks are the host kernel's.
func (p *ProcessGuest) Inject(o *inject.Order) (inject.Hit, error) {
	var hit inject.Hit
	var err error
	random := o.Random()
	switch {
	case o.Fault == inject.Exception:
		err = p.except(o, random, &hit)
	case o.Fault == inject.Flip:
		err = p.flip(o, random, &hit)
	default:
		err = inject.ErrUnsupported
	}
	return hit, err
}

// anyThread stops one of the threads for do; which one is random among those that stop in time.
func (p *ProcessGuest) anyThread(random *rand.Rand, do func(tid int, regs *unix.PtraceRegs) (unix.Signal, error)) error {
	tids := p.guest.TIDs()
	if len(tids) == 0 {
		return inject.ErrNoThread
	}
	random.Shuffle(len(tids), func(i, j int) { tids[i], tids[j] = tids[j], tids[i] })
	for _, tid := range tids {
		err := p.guest.Strike(tid, strikeWait, func(regs *unix.PtraceRegs) (unix.Signal, error) { return do(tid, regs) })
		if !errors.Is(err, process.ErrBusy) {
			return err
		}
	}
	return fmt.Errorf("none of %d threads could be stopped within %v: they are in calls", len(tids), strikeWait)
}

// except has a thread take an exception.
func (p *ProcessGuest) except(o *inject.Order, random *rand.Rand, hit *inject.Hit) error {
	e, _ := amd64.LookupException(o.How)
	if e == nil {
		return fmt.Errorf("no exception is named %q", o.How)
	}
	return p.anyThread(random, func(tid int, r *unix.PtraceRegs) (unix.Signal, error) {
		hit.Code = []uint64{r.Rip}
		entry := p.guest.Entry()
		if e.Code == nil || entry == 0 {
			hit.What = fmt.Sprintf("thread %d took #%s at %#x (%s)", tid, e.Name, r.Rip, emulated)
			return unix.Signal(signalOf(e.Vector)), nil
		}
		// The program's first instructions, which are over, make room for the code; its page is a copy from then on.
		code := append(append([]byte{}, e.Code...), 0xcc, 0xcc)
		if err := p.guest.Poke(entry, code); err != nil {
			return 0, fmt.Errorf("write %d bytes to the program's entry point %#x: %w", len(code), entry, err)
		}
		hit.What = fmt.Sprintf("thread %d executes %s at %#x (#%s)", tid, e.Text, r.Rip, e.Name)
		var back [8]byte
		for i := range back {
			back[i] = byte(r.Rip >> (8 * i))
		}
		// As if the program had called the code: its own traceback leads on to where the thread was.
		if _, err := p.guest.WriteMem(r.Rsp-8, back[:]); err == nil {
			r.Rsp -= 8
		}
		r.Rip = entry
		r.Eflags |= e.Flags
		return 0, nil
	})
}

// flip inverts bits of the guest's state.
func (p *ProcessGuest) flip(o *inject.Order, random *rand.Rand, hit *inject.Hit) error {
	memory := func(ok func(process.Memory) bool) (list []inject.Piece, err error) {
		all, err := p.guest.Memory()
		for _, m := range all {
			if ok(m) {
				list = append(list, inject.Piece{Start: m.Addr, Size: m.Len})
			}
		}
		return list, err
	}
	data := func(m process.Memory) bool { return m.Write && !m.Exec }
	switch o.How {
	case inject.Code, inject.Data:
		ok := data
		if o.How == inject.Code {
			ok = func(m process.Memory) bool { return m.Exec }
		}
		list, err := memory(ok)
		if err != nil {
			return err
		}
		return inject.FlipBits(random, o.Bits, list, p.flipByte, o.How, hit)
	}
	return p.anyThread(random, func(tid int, r *unix.PtraceRegs) (unix.Signal, error) {
		of := fmt.Sprintf("thread %d, at %#x", tid, r.Rip)
		if o.How == inject.Stack {
			hit.Code = []uint64{r.Rip}
			list, err := memory(data)
			if err != nil {
				return 0, err
			}
			return 0, inject.FlipBits(random, o.Bits, inject.Within(list, r.Rsp, inject.StackBytes), p.flipByte, "stack of "+of, hit)
		}
		hit.What = inject.FlipRegisters(random, o.Bits, hostRegisters(r), of)
		return 0, nil
	})
}

func (p *ProcessGuest) flipByte(addr uint64, mask byte) (old byte, err error) {
	var b [1]byte
	if _, err := p.guest.ReadMem(addr, b[:]); err != nil {
		return 0, err
	}
	return b[0], p.guest.Poke(addr, []byte{b[0] ^ mask})
}

func hostRegisters(r *unix.PtraceRegs) []inject.Register {
	return []inject.Register{
		{Name: "rax", Value: &r.Rax}, {Name: "rbx", Value: &r.Rbx}, {Name: "rcx", Value: &r.Rcx}, {Name: "rdx", Value: &r.Rdx}, {Name: "rsi", Value: &r.Rsi},
		{Name: "rdi", Value: &r.Rdi}, {Name: "rsp", Value: &r.Rsp}, {Name: "rbp", Value: &r.Rbp}, {Name: "r8", Value: &r.R8}, {Name: "r9", Value: &r.R9},
		{Name: "r10", Value: &r.R10}, {Name: "r11", Value: &r.R11}, {Name: "r12", Value: &r.R12}, {Name: "r13", Value: &r.R13}, {Name: "r14", Value: &r.R14},
		{Name: "r15", Value: &r.R15}, {Name: "rip", Value: &r.Rip}, {Name: "rflags", Value: &r.Eflags},
	}
}

// faulty serves a forwarded call while a fault is armed, and reports whether that was all that becomes of it.
func (p *ProcessGuest) faulty(f *forwarded, fault *inject.Armed, nr uint64) bool {
	fate := fault.OfCall(nr, f.now.Args[1])
	switch {
	case fate.Hang:
		<-p.guest.Done()
		return true
	case fate.Errno != 0:
		_ = f.now.Return(process.Errno(fate.Errno)) // the thread may be gone: nobody is left to tell
		return true
	case fate.Delay > 0:
		select {
		case <-time.After(fate.Delay):
		case <-p.guest.Done():
		}
	}
	return false
}
