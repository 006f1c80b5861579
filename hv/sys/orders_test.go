package sys

import (
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/mm"
)

// fakeMemory is a guest's memory, and how it lets itself be bounded.
type fakeMemory struct {
	mu             sync.Mutex
	size, reserved uint64
	use            uint64
	forced         int
	unyielding     bool // nothing can be taken by force
	onAsk          func()
}

func (f *fakeMemory) ask(r *hv.Reclaim) (bound, target, used uint64) {
	bound, target = r.Resolve(f.size, f.reserved)
	if f.onAsk != nil {
		go f.onAsk()
	}
	return bound, target, f.used()
}

func (f *fakeMemory) used() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.use
}

func (f *fakeMemory) set(n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.use = n
}

func (f *fakeMemory) enforce(target uint64) (uint64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forced++
	if f.use <= target {
		return 0, true
	}
	if f.unyielding {
		return 0, false
	}
	taken := f.use - target
	f.use = target
	return taken, true
}

// guestMem is guest memory of which only the first bytes can be accessed, and what a thread waits for.
type guestMem struct {
	b     [256]byte
	woken chan error
}

func (g *guestMem) CopyIn(addr uint64, b []byte) error { return g.copy(addr, b, false) }
func (g *guestMem) CopyOut(addr uint64, b []byte) error {
	return g.copy(addr, b, true)
}
func (g *guestMem) copy(addr uint64, b []byte, out bool) error {
	if addr > uint64(len(g.b)) || uint64(len(b)) > uint64(len(g.b))-addr {
		return mm.ErrFault
	}
	if out {
		copy(g.b[addr:], b)
	} else {
		copy(b, g.b[addr:])
	}
	return nil
}
func (g *guestMem) Segments(uint64, uint64, bool, [][]byte) ([][]byte, func(), bool, error) {
	return nil, nil, false, nil
}
func (g *guestMem) Poll(fds []unix.PollFd, _ time.Duration) (int, error) {
	for {
		select {
		case err := <-g.woken:
			return 0, err
		default:
		}
		if n, _ := unix.Poll(fds, 1); n > 0 {
			return n, nil
		}
	}
}

func newOrders(t *testing.T) *orders {
	t.Helper()
	o := &orders{}
	if err := o.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(o.bell) })
	return o
}

// await returns once ok holds.
func (o *orders) await(ok func() bool) {
	for {
		o.mu.Lock()
		now := ok()
		o.mu.Unlock()
		if now {
			return
		}
		runtime.Gosched()
	}
}

const mib = 1 << 20

// TestOrders has a guest give in time, say that it is done, give nothing, and have nothing to give.
func TestOrders(t *testing.T) {
	const hour = hv.MaxReclaimMs
	for _, c := range []struct {
		name string
		r    hv.Reclaim
		m    *fakeMemory
		then func(o *orders, m *fakeMemory) // once asked
		want hv.Reclaimed
	}{
		{"gives", hv.Reclaim{Bytes: 32 * mib, WithinMs: hour}, &fakeMemory{size: 64 * mib, use: 60 * mib},
			func(_ *orders, m *fakeMemory) { m.set(20 * mib) }, hv.Reclaimed{Bound: 32 * mib, Target: 28 * mib, Before: 60 * mib, Given: 40 * mib, After: 20 * mib}},
		{"is done with less", hv.Reclaim{Bytes: 32 * mib, WithinMs: hour}, &fakeMemory{size: 64 * mib, use: 60 * mib},
			func(o *orders, m *fakeMemory) {
				m.set(40 * mib)
				if n, err := o.syscall(nil, nil, [6]uint64{abi.ReclaimDone, 1, 0}, nil); err != nil || n != 12*mib {
					t.Errorf("12 MiB are to be given yet: %d, %v", n, err)
				}
				_, _ = o.syscall(nil, nil, [6]uint64{abi.ReclaimDone, 1, 1}, nil)
			}, hv.Reclaimed{Bound: 32 * mib, Target: 28 * mib, Before: 60 * mib, Given: 20 * mib, Taken: 12 * mib, After: 28 * mib}},
		{"gives nothing", hv.Reclaim{Bytes: 32 * mib, WithinMs: 20}, &fakeMemory{size: 64 * mib, use: 60 * mib}, nil,
			hv.Reclaimed{Bound: 32 * mib, Target: 28 * mib, Before: 60 * mib, Taken: 32 * mib, After: 28 * mib}},
		{"has no time", hv.Reclaim{Bytes: 32 * mib}, &fakeMemory{size: 64 * mib, use: 60 * mib}, nil,
			hv.Reclaimed{Bound: 32 * mib, Target: 28 * mib, Before: 60 * mib, Taken: 32 * mib, After: 28 * mib}},
		{"cannot be forced", hv.Reclaim{Bytes: 32 * mib}, &fakeMemory{size: 64 * mib, use: 60 * mib, unyielding: true}, nil,
			hv.Reclaimed{Bound: 32 * mib, Target: 28 * mib, Before: 60 * mib, After: 60 * mib, Ended: true}},
		{"has nothing to give", hv.Reclaim{Bytes: 32 * mib, WithinMs: hour}, &fakeMemory{size: 64 * mib, use: 10 * mib}, nil,
			hv.Reclaimed{Bound: 32 * mib, Target: 28 * mib, Before: 10 * mib, After: 10 * mib}},
		{"is told no more than what is reserved", hv.Reclaim{Bytes: 1 * mib}, &fakeMemory{size: 64 * mib, reserved: 16 * mib, use: 16 * mib}, nil,
			hv.Reclaimed{Bound: 16 * mib, Target: 16 * mib, Before: 16 * mib, After: 16 * mib}},
		{"may use all", hv.Reclaim{Bytes: 1 << 60, WithinMs: hour}, &fakeMemory{size: 64 * mib, use: 64 * mib}, nil,
			hv.Reclaimed{Bound: 64 * mib, Target: 64 * mib, Before: 64 * mib, After: 64 * mib}},
	} {
		o := newOrders(t)
		m := c.m
		if c.then != nil {
			m.onAsk = func() {
				o.await(func() bool { return o.now.ID != 0 })
				c.then(o, m)
			}
		}
		got, err := o.carryOut(&c.r, m)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got.Ms = 0
		if *got != c.want || m.forced != 1 {
			t.Errorf("%s: %+v, enforced %d times; expected %+v", c.name, *got, m.forced, c.want)
		}
		var st hv.MemoryState
		if o.addTo(&st); st.Orders != 1 || st.Given != c.want.Given || st.Taken != c.want.Taken || st.Pending {
			t.Errorf("%s: %+v", c.name, st)
		}
	}
	o := newOrders(t)
	for _, r := range []*hv.Reclaim{nil, {WithinMs: -1}, {WithinMs: hv.MaxReclaimMs + 1}} {
		if _, err := o.carryOut(r, &fakeMemory{}); err == nil {
			t.Errorf("%+v was carried out", r)
		}
	}
}

// TestOrderSuperseded raises the bound while a guest is asked.
func TestOrderSuperseded(t *testing.T) {
	o := newOrders(t)
	m := &fakeMemory{size: 64 * mib, use: 60 * mib}
	first := make(chan *hv.Reclaimed)
	go func() {
		out, _ := o.carryOut(&hv.Reclaim{Bytes: 16 * mib, WithinMs: hv.MaxReclaimMs}, m)
		first <- out
	}()
	o.await(func() bool { return o.now.ID == 1 })
	out, err := o.carryOut(&hv.Reclaim{Bytes: 64 * mib}, m)
	if err != nil || out.Taken != 0 || out.Bound != 64*mib {
		t.Errorf("%+v, %v", out, err)
	}
	if out := <-first; !out.Superseded || out.Taken != 0 || m.used() != 60*mib {
		t.Errorf("%+v, %d used", out, m.used())
	}
}

// TestHostileReclaim makes the system call with arguments that cannot be.
func TestHostileReclaim(t *testing.T) {
	o := newOrders(t)
	g := &guestMem{woken: make(chan error, 1)}
	vector := func(limit int) ([]mm.Piece, int) {
		if limit < 0 || limit > abi.MaxTaken {
			t.Errorf("asked for %d pieces", limit)
		}
		return make([]mm.Piece, min(limit, 70_000)), 70_000
	}
	call := func(a ...uint64) (uint64, error) {
		var args [6]uint64
		copy(args[:], a)
		return o.syscall(g, g, args, vector)
	}
	const all = ^uint64(0)
	for _, c := range []struct {
		args []uint64
		want error
	}{
		{[]uint64{0}, unix.EINVAL}, {[]uint64{4}, unix.EINVAL}, {[]uint64{all, all, all}, unix.EINVAL},
		{[]uint64{abi.ReclaimDone, 0}, unix.ESRCH}, {[]uint64{abi.ReclaimDone, 1}, unix.ESRCH}, {[]uint64{abi.ReclaimDone, all}, unix.ESRCH},
		{[]uint64{abi.ReclaimTaken, 0, all}, mm.ErrFault}, {[]uint64{abi.ReclaimTaken, all, 1}, mm.ErrFault}, {[]uint64{abi.ReclaimTaken, 256, 1}, mm.ErrFault},
		{[]uint64{abi.ReclaimTaken, 0, 16}, nil}, {[]uint64{abi.ReclaimTaken, all, 0}, nil},
	} {
		if n, err := call(c.args...); !errors.Is(err, c.want) || err == nil && n != 70_000 {
			t.Errorf("%#x: %d, %v; expected %v", c.args, n, err, c.want)
		}
	}
	g.woken <- unix.EINTR
	if _, err := call(abi.ReclaimWait, 0, 0); err != unix.EINTR {
		t.Errorf("a wait that a signal ends: %v", err)
	}
	waits := make(chan error)
	go func() {
		_, err := call(abi.ReclaimWait, 64, 0)
		waits <- err
	}()
	o.await(func() bool { return o.waiting })
	if _, err := call(abi.ReclaimWait, 0, 0); err != unix.EBUSY {
		t.Errorf("a second one that waits: %v", err)
	}
	out, err := o.carryOut(&hv.Reclaim{Bytes: 32 * mib, WithinMs: 1}, &fakeMemory{size: 64 * mib, use: 50 * mib})
	if err != nil || !out.Told {
		t.Errorf("%+v, %v", out, err)
	}
	le := binary.LittleEndian
	if err := <-waits; err != nil || le.Uint64(g.b[64:]) != 1 || le.Uint64(g.b[72:]) != 28*mib || le.Uint64(g.b[80:]) != 50*mib || le.Uint64(g.b[88:]) == 0 {
		t.Errorf("order % x, %v", g.b[64:96], err)
	}
	if _, err := call(abi.ReclaimWait, all, 7); !errors.Is(err, mm.ErrFault) {
		t.Errorf("the present order, to nowhere: %v", err)
	}
	if n, err := call(abi.ReclaimDone, 1, 0); err != nil || n != 0 {
		t.Errorf("nothing is left to give: %d, %v", n, err)
	}
	if _, err := call(abi.ReclaimDone, 1, 2); err != unix.EINVAL {
		t.Errorf("done in a way that there is not: %v", err)
	}
	g.woken <- unix.EINTR
	if _, err := call(abi.ReclaimWait, 0, 1); err != unix.EINTR {
		t.Errorf("a wait that knows the present order: %v", err)
	}
}
