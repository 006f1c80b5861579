package ring

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Source is one end of a queue as a Poller sees it. *Device and *Driver are Sources.
type Source interface {
	Pending() bool        // is there something to do, cheap enough to spin on
	Arm() (maySleep bool) // ask for the doorbell, then re-check
	Disarm()              // the doorbell is not needed: we poll
}

// Wake says why Poller.Wait returned.
type Wake int

const (
	WakeTimeout Wake = iota // nothing happened in the given time
	WakeWork                // some Source has, or may have, something to do: scan them all
	WakeWatch               // a watched descriptor is readable: look after it, and drain it
)

// PollerConfig bounds the time that a Poller spins before it sleeps. Zero values mean the defaults.
type PollerConfig struct {
	// MinSpin is the budget below which spinning is never shrunk. Default 0: an idle poller does not spin.
	MinSpin time.Duration
	// MaxSpin is the largest budget, and the time within which spinning counts as worth while. Default
	// 100 µs, a few times the cost of a sleep and a wake-up. Negative: never spin.
	MaxSpin time.Duration
	// Poll, if not nil, waits in place of ppoll(2), as that does, at most timeout (negative: for ever), and
	// drains the doorbells that it reports: inside a Grail guest, where each system call is an exit from
	// the VM, that halves their number. Before it waits it rings the doorbells whose entries have PollRing
	// among their events.
	Poll func(fds []unix.PollFd, timeout time.Duration) (n int, err error)
}

// PollRing among the events of an entry of PollerConfig.Poll: the doorbell is to be rung, and not waited for. Linux has no
// event of that value.
const PollRing = 0x4000

// PollerStats counts what a Poller did, so that spinning can be charged to somebody.
type PollerStats struct {
	Ready     uint64        // Wait found work at once
	SpinHits  uint64        // work came while spinning
	Sleeps    uint64        // blocked on the doorbells
	Preempted uint64        // spinning stopped because another thread wanted the processor
	DeadBells uint64        // doorbells given up because their descriptor is broken
	Spun      time.Duration // processor time spent spinning
	Budget    time.Duration // present spinning budget of one Wait
}

const (
	defaultMaxSpin = 100 * time.Microsecond
	firstSpin      = 10 * time.Microsecond // first budget above 0, and the step from there is a doubling
	leastSleep     = 20 * time.Microsecond // what going to sleep and being woken costs at least
	spinCredit     = 10                    // sleeps' cost: misses that a run of hits pays for
	firstRest      = 16                    // sleeps without spinning once the credit is used up; doubles
	lastRest       = 128
	preemptGap     = 100 * time.Microsecond
	clockEvery     = 16                    // polls between two looks at the clock
	watchEvery     = 10 * time.Millisecond // a busy poller looks at watched descriptors this often
)

// Poller waits for work on any number of queues with one thread: it spins for a while, and when that does not
// pay it arms the queues' notifications and sleeps on their doorbells.
//
// The spinning budget adapts. A sleep that ended within MaxSpin doubles the budget, since spinning longer
// would have met the work; a longer one halves it. What the sleep itself costs, which is that of the shortest so
// far, does not count for that: inside a VM it can be as long as MaxSpin. Spinning must also earn its keep: each
// success earns the cost of a sleep, each failure costs the time spun, and when the balance is used up the Poller spins no
// longer than MinSpin for a while, which doubles from time to time. That is what happens where the peer needs
// the very processor that we spin on. Where only one processor is usable a Poller never spins, and a gap in
// its own execution while spinning, which means that another thread needed the processor, takes the budget
// down at once. A stream of requests spaced just under MaxSpin still costs a whole processor;
// PollerStats.Spun says so.
//
// It is not safe for concurrent use: one owner at a time, who also owns the Sources.
type Poller struct {
	min, max, budget time.Duration
	cost             time.Duration // of a sleep, from leastSleep to max
	balance          time.Duration // what spinning has earned less what it has cost
	rest, nextRest   int           // sleeps to come without spinning; length of the next such time
	start            time.Time     // origin of now
	sources          []Source
	rung             []bool        // by source: the doorbell has rung since it was last drained
	bells            []Doorbell    // to be rung
	fds              []unix.PollFd // one a source, then one a watched descriptor
	lastWatch        time.Duration
	stats            PollerStats
	wait             func(fds []unix.PollFd, timeout time.Duration) (int, error)
	drains           bool // wait drains the doorbells
}

// NewPoller returns a Poller without sources.
func NewPoller(c PollerConfig) *Poller {
	if c.MaxSpin == 0 {
		c.MaxSpin = defaultMaxSpin
	}
	if c.MaxSpin < 0 || runtime.GOMAXPROCS(0) == 1 || runtime.NumCPU() == 1 {
		c.MinSpin, c.MaxSpin = 0, 0
	}
	c.MinSpin = min(max(c.MinSpin, 0), c.MaxSpin)
	wait := c.Poll
	if wait == nil {
		wait = ppoll
	}
	return &Poller{
		wait: wait, drains: c.Poll != nil,
		min: c.MinSpin, max: c.MaxSpin, budget: c.MinSpin, start: time.Now(),
		cost: max(c.MaxSpin, leastSleep), balance: spinCredit * leastSleep, nextRest: firstRest,
	}
}

// Add makes p serve s, whose peer rings bell. The doorbell stays the caller's, and must stay open until
// Remove. A doorbell with a negative descriptor means that nobody rings: s is then looked at only when Wait
// returns for another reason.
func (p *Poller) Add(s Source, bell Doorbell) {
	n := len(p.sources)
	p.sources = append(p.sources, s)
	p.rung = append(p.rung, false)
	p.fds = append(p.fds, unix.PollFd{})
	copy(p.fds[n+1:], p.fds[n:])
	p.fds[n] = unix.PollFd{Fd: int32(bell.fd), Events: unix.POLLIN}
}

// Remove undoes Add. Unknown sources are ignored.
func (p *Poller) Remove(s Source) {
	for i := range p.sources {
		if p.sources[i] == s {
			p.sources = append(p.sources[:i], p.sources[i+1:]...)
			p.rung = append(p.rung[:i], p.rung[i+1:]...)
			p.fds = append(p.fds[:i], p.fds[i+1:]...)
			return
		}
	}
}

// Watch makes Wait return WakeWatch while fd is readable, which a busy Poller notices within 10 ms. The
// descriptor stays the caller's.
func (p *Poller) Watch(fd int) {
	p.fds = append(p.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
}

// Unwatch undoes Watch. Unknown descriptors are ignored.
func (p *Poller) Unwatch(fd int) {
	for i := len(p.sources); i < len(p.fds); i++ {
		if p.fds[i].Fd == int32(fd) {
			p.fds = append(p.fds[:i], p.fds[i+1:]...)
			return
		}
	}
}

// Ring rings bell, at the latest when Wait starts to spin or returns. Where PollerConfig.Poll is there, a Wait that sleeps rings with the
// same call: one exit less. The bell must stay open until then; see Flush. An error shows in PollerStats.DeadBells alone.
func (p *Poller) Ring(bell Doorbell) {
	p.bells = append(p.bells, bell)
	if !p.drains {
		p.Flush()
	}
}

// Flush rings now what Ring was given.
func (p *Poller) Flush() {
	for _, b := range p.bells {
		if b.Ring() != nil {
			p.stats.DeadBells++
		}
	}
	p.bells = p.bells[:0]
}

// Stats returns the counts since NewPoller.
func (p *Poller) Stats() PollerStats {
	s := p.stats
	s.Budget = p.budget
	return s
}

// Sleeps returns how often Wait has blocked on the doorbells.
func (p *Poller) Sleeps() uint64 { return p.stats.Sleeps }

// Wait returns as soon as some Source may have work, a watched descriptor is readable, or timeout has passed;
// a negative timeout never passes, a zero one only looks. It does not allocate. Errors: poll's, wrapped.
func (p *Poller) Wait(timeout time.Duration) (Wake, error) {
	if p.pending() {
		p.Flush()
		p.stats.Ready++
		return p.busyWatch()
	}
	begin := p.now()
	spun, found := p.spin(begin, timeout)
	p.stats.Spun += spun
	p.account(spun, found)
	if found {
		p.stats.SpinHits++
		return p.busyWatch()
	}
	wake, err := p.sleep(begin, timeout)
	if waited := p.now() - begin; waited > p.max+p.cost || wake == WakeTimeout {
		p.budget = max(p.budget/2, p.min)
		if p.budget < firstSpin {
			p.budget = p.min
		}
	} else if wake == WakeWork {
		p.budget = min(max(2*p.budget, firstSpin), p.max)
	}
	return wake, err
}

func (p *Poller) now() time.Duration { return time.Since(p.start) }

func (p *Poller) pending() bool {
	for _, s := range p.sources {
		if s.Pending() {
			return true
		}
	}
	return false
}

// account keeps the balance of spinning, and has it rest when it does not pay.
func (p *Poller) account(spun time.Duration, found bool) {
	switch {
	case found:
		if p.balance += p.cost; p.balance >= spinCredit*p.cost {
			p.balance, p.nextRest = spinCredit*p.cost, firstRest
		}
	case p.rest > 0:
		p.rest--
	default:
		if p.balance -= spun; p.balance < 0 {
			p.balance = spinCredit * p.cost / 2
			p.rest, p.nextRest = p.nextRest, min(2*p.nextRest, lastRest)
		}
	}
}

// spin polls the sources for the present budget, and reports the time that took and whether one has work.
func (p *Poller) spin(begin, timeout time.Duration) (spun time.Duration, found bool) {
	budget := p.budget
	if p.rest > 0 {
		budget = p.min
	}
	if timeout >= 0 {
		budget = min(budget, timeout)
	}
	if budget <= 0 || len(p.sources) == 0 {
		return 0, false
	}
	p.Flush()
	last := begin
	for !found && last-begin < budget {
		for range clockEvery {
			pause(1)
			if found = p.pending(); found {
				break
			}
		}
		now := p.now()
		if now-last > preemptGap && !found {
			p.stats.Preempted++
			p.budget = p.min
			break // the gap was not ours to charge
		}
		last = now
	}
	return last - begin, found
}

// sleep arms every source and blocks on the doorbells.
func (p *Poller) sleep(begin, timeout time.Duration) (Wake, error) {
	// Doorbells that have rung are drained here and not on wake-up, off the path of the waiting request. A
	// ring that this swallows came before Arm, whose re-check sees its request.
	for i, r := range p.rung {
		if r {
			p.rung[i] = false
			if _, err := DoorbellOf(int(p.fds[i].Fd)).Drain(); err != nil {
				p.giveUp(i)
			}
		}
	}
	maySleep := true
	for _, s := range p.sources {
		maySleep = s.Arm() && maySleep
	}
	wake, err := WakeWork, error(nil)
	if maySleep {
		p.stats.Sleeps++
		from := p.now()
		wake, err = p.poll(begin, timeout)
		p.cost = max(min(p.cost, p.now()-from), leastSleep)
	}
	p.Flush()
	for _, s := range p.sources {
		s.Disarm()
	}
	return wake, err
}

// poll blocks until a descriptor is readable or timeout, counted from begin, has passed.
func (p *Poller) poll(begin, timeout time.Duration) (Wake, error) {
	for {
		left := timeout
		if timeout >= 0 {
			left = max(timeout-(p.now()-begin), 0)
		}
		n, err := p.wait(p.withBells(), left)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return WakeTimeout, fmt.Errorf("ring: poll: %w", err)
		case n == 0:
			return WakeTimeout, nil
		}
		wake, any := p.collect()
		if any {
			return wake, nil
		}
	}
}

// withBells returns what to poll, with the bells to be rung at the end; collect does not look at these.
func (p *Poller) withBells() []unix.PollFd {
	fds := p.fds
	for _, b := range p.bells {
		if b.fd >= 0 {
			fds = append(fds, unix.PollFd{Fd: int32(b.fd), Events: PollRing})
		}
	}
	p.bells = p.bells[:0]
	p.fds = fds[:len(p.fds)] // keeps what append has grown
	return fds
}

// ppoll is poll(2) with a timeout as PollerConfig.Poll has it.
func ppoll(fds []unix.PollFd, timeout time.Duration) (int, error) {
	var limit unix.Timespec
	var until *unix.Timespec
	if timeout >= 0 {
		limit = unix.NsecToTimespec(int64(timeout))
		until = &limit
	}
	return unix.Ppoll(fds, until, nil)
}

// collect notes which doorbells rang, and reports whether anything did; broken doorbells do not count.
func (p *Poller) collect() (wake Wake, any bool) {
	for i := range p.fds {
		ev := p.fds[i].Revents
		p.fds[i].Revents = 0
		switch {
		case ev == 0:
		case i >= len(p.sources):
			wake, any = WakeWatch, true
		case ev&unix.POLLIN != 0:
			p.rung[i] = !p.drains
			if !any {
				wake, any = WakeWork, true
			}
		default: // POLLERR, POLLHUP, POLLNVAL
			p.giveUp(i)
		}
	}
	return wake, any
}

func (p *Poller) giveUp(i int) {
	p.fds[i].Fd = -1
	p.stats.DeadBells++
}

// busyWatch is the answer when there is work: now and then it looks at the watched descriptors, so that a
// stream of requests cannot keep the owner from them.
func (p *Poller) busyWatch() (Wake, error) {
	if len(p.fds) == len(p.sources) {
		return WakeWork, nil
	}
	now := p.now()
	if now-p.lastWatch < watchEvery {
		return WakeWork, nil
	}
	p.lastWatch = now
	var zero unix.Timespec
	watched := p.fds[len(p.sources):]
	n, err := unix.Ppoll(watched, &zero, nil)
	if n > 0 {
		for i := range watched {
			watched[i].Revents = 0
		}
		return WakeWatch, nil
	}
	if err != nil && err != unix.EINTR {
		return WakeWork, fmt.Errorf("ring: poll: %w", err)
	}
	return WakeWork, nil
}
