package sys

import (
	"math/bits"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
)

// clock keeps the parameters by which guest user mode computes the host's CLOCK_MONOTONIC and CLOCK_REALTIME from
// the TSC. It is set anew every second, so that it follows the host's own corrections; the monotonic clock
// never steps, its rate is bent towards the host's instead.
type clock struct {
	mu     sync.Mutex
	page   clockPage
	params amd64.Clock
	host   uint64 // the host's monotonic time when params were set
	wrong  int64  // what was added to real time alone, in ns
}

// clockPeriod is the time between two settings.
const clockPeriod = time.Second

// maxBend bounds how much faster or slower than the TSC's nominal rate the guest's clock may run: 1/2^10.
const maxBend = 10

// firstMeasure is how long the TSC's rate is measured before the guest starts: the error of some 0.1 % that this
// leaves is made up within the first periods.
const firstMeasure = 200 * time.Microsecond

// newClock measures the TSC's rate and sets the first parameters.
func newClock(mem []byte) *clock {
	c := &clock{page: viewClock(mem)}
	t0, m0 := sample(unix.CLOCK_MONOTONIC)
	t1, m1 := t0, m0
	for m1-m0 < uint64(firstMeasure) || t1 == t0 {
		t1, m1 = sample(unix.CLOCK_MONOTONIC)
	}
	c.params = amd64.Clock{Stamp: t1, Mult: mulDiv(m1-m0, 1<<32, t1-t0), Monotonic: m1}
	c.host, m0 = m1, m1
	c.params.Realtime = uint64(int64(m0) + realOffset())
	c.page.store(&c.params)
	return c
}

// sample returns the TSC and the clock at the same moment, as closely as a few tries allow.
func sample(id int32) (tsc, ns uint64) {
	best := ^uint64(0)
	for range 3 {
		before := amd64.RDTSC()
		t := now(id)
		after := amd64.RDTSC()
		if after-before < best {
			best = after - before
			tsc, ns = before+(after-before)/2, uint64(t)
		}
	}
	return tsc, ns
}

func realOffset() int64 { return int64(now(unix.CLOCK_REALTIME) - now(unix.CLOCK_MONOTONIC)) }

func now(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// at returns the guest's monotonic time at tsc.
func (c *clock) at(tsc uint64) uint64 {
	hi, lo := bits.Mul64(tsc-c.params.Stamp, c.params.Mult)
	return c.params.Monotonic + hi<<32 + lo>>32
}

// adjust makes the guest's clock meet the host's one period from now.
func (c *clock) adjust() {
	c.mu.Lock()
	defer c.mu.Unlock()
	tsc, host := sample(unix.CLOCK_MONOTONIC)
	if tsc <= c.params.Stamp {
		return
	}
	guest := c.at(tsc)
	ticks := tsc - c.params.Stamp
	elapsed := host - c.host
	if ticks == 0 || elapsed == 0 {
		return
	}
	// The true rate over the last period, bent by the error to be made up in the next.
	ideal := mulDiv(elapsed, 1<<32, ticks)
	late := max(-int64(clockPeriod), min(int64(clockPeriod), int64(host-guest)))
	step := late * int64(ideal) / int64(clockPeriod)
	bound := int64(ideal >> maxBend)
	next := amd64.Clock{
		Sequence: c.params.Sequence, Stamp: tsc, Monotonic: guest,
		Mult: uint64(int64(ideal) + max(-bound, min(bound, step))),
	}
	next.Realtime = uint64(int64(guest) + realOffset() + c.wrong)
	c.host = host
	c.params = next
	c.page.store(&c.params)
}

// jump makes both clocks, or real time alone, jump by d, and returns by how much they did: neither goes below 1 s. They stay wrong.
func (c *clock) jump(d time.Duration, realOnly bool) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	least := c.params.Realtime
	if !realOnly {
		least = min(least, c.params.Monotonic)
	}
	d = max(d, time.Second-time.Duration(min(least, 1<<62)))
	c.params.Realtime += uint64(d)
	if realOnly {
		c.wrong += int64(d)
	} else {
		c.params.Monotonic += uint64(d)
	}
	c.page.store(&c.params)
	return d
}

// mulDiv returns a×b÷c; the quotient must fit.
func mulDiv(a, b, c uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	q, _ := bits.Div64(hi%c, lo, c)
	return q
}

// keep adjusts the clock until the returned function is called.
func (c *clock) keep() (stop func()) {
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(clockPeriod)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.adjust()
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}
