package ring_test

import (
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grailos/grail/ring"
	"golang.org/x/sys/unix"
)

// source is a Source whose state the test sets.
type source struct {
	work   atomic.Bool
	armed  atomic.Int32 // 1 armed, 0 not
	onArm  func()       // a peer that acts between the last look and the re-check
	events []string
}

func (s *source) Pending() bool { return s.work.Load() }

func (s *source) Arm() bool {
	s.armed.Store(1)
	s.events = append(s.events, "arm")
	if s.onArm != nil {
		s.onArm()
	}
	return !s.work.Load()
}

func (s *source) Disarm() {
	s.armed.Store(0)
	s.events = append(s.events, "disarm")
}

func newBell(t testing.TB) ring.Doorbell {
	t.Helper()
	b, err := ring.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func wait(t testing.TB, p *ring.Poller, timeout time.Duration, want ring.Wake) {
	t.Helper()
	wake, err := p.Wait(timeout)
	if err != nil || wake != want {
		t.Fatalf("Wait: %v %v, want %v", wake, err, want)
	}
}

func TestPollerReady(t *testing.T) {
	p := ring.NewPoller(ring.PollerConfig{})
	var s source
	p.Add(&s, newBell(t))
	s.work.Store(true)
	wait(t, p, -1, ring.WakeWork)
	if len(s.events) != 0 || p.Stats().Ready != 1 {
		t.Fatalf("%v, %+v", s.events, p.Stats())
	}
}

func TestPollerTimeout(t *testing.T) {
	p := ring.NewPoller(ring.PollerConfig{})
	wait(t, p, time.Millisecond, ring.WakeTimeout) // with nothing to wait for
	var s source
	p.Add(&s, newBell(t))
	wait(t, p, 0, ring.WakeTimeout)
	begin := time.Now()
	wait(t, p, 5*time.Millisecond, ring.WakeTimeout)
	if d := time.Since(begin); d < 5*time.Millisecond {
		t.Errorf("returned after %v", d)
	}
	if s.armed.Load() != 0 {
		t.Error("left armed")
	}
}

// TestPollerRaces: work that comes between the last look and Arm must not be slept on, and a doorbell that was
// rung for it must not be lost for later.
func TestPollerRaces(t *testing.T) {
	p := ring.NewPoller(ring.PollerConfig{MaxSpin: -1})
	var s source
	bell := newBell(t)
	p.Add(&s, bell)
	s.onArm = func() { s.work.Store(true) }
	wait(t, p, -1, ring.WakeWork)
	if s.armed.Load() != 0 || p.Stats().Sleeps != 0 {
		t.Fatalf("%v, %+v", s.events, p.Stats())
	}
	s.work.Store(false)
	s.onArm = nil
	if err := bell.Ring(); err != nil {
		t.Fatal(err)
	}
	wait(t, p, -1, ring.WakeWork)                  // an early ring is only a stray one
	wait(t, p, time.Millisecond, ring.WakeTimeout) // and is drained before the next sleep
	if err := bell.Ring(); err != nil {
		t.Fatal(err)
	}
	wait(t, p, -1, ring.WakeWork)
}

func TestPollerSeveral(t *testing.T) {
	p := ring.NewPoller(ring.PollerConfig{MaxSpin: -1})
	var s [3]source
	var bells [3]ring.Doorbell
	control := newBell(t)
	p.Watch(control.FD())
	for i := range s {
		bells[i] = newBell(t)
		p.Add(&s[i], bells[i])
	}
	for i := range s {
		go bells[i].Ring()
		wait(t, p, -1, ring.WakeWork)
	}
	go control.Ring()
	wait(t, p, -1, ring.WakeWatch)
	wait(t, p, -1, ring.WakeWatch) // until the owner drains it
	if rung, err := control.Drain(); !rung || err != nil {
		t.Fatal(rung, err)
	}
	p.Remove(&s[1])
	p.Remove(&s[1]) // unknown
	s[1].work.Store(true)
	wait(t, p, time.Millisecond, ring.WakeTimeout)
	bells[1].Ring()
	wait(t, p, time.Millisecond, ring.WakeTimeout)
	bells[2].Ring()
	wait(t, p, -1, ring.WakeWork)
	s[2].work.Store(true)
	wait(t, p, -1, ring.WakeWork)
	s[2].work.Store(false)
	p.Unwatch(control.FD())
	control.Ring()
	wait(t, p, time.Millisecond, ring.WakeTimeout)
}

// TestPollerWatchUnderLoad: a queue that is never empty must not keep the owner from its control channel.
func TestPollerWatchUnderLoad(t *testing.T) {
	p := ring.NewPoller(ring.PollerConfig{})
	var s source
	s.work.Store(true)
	p.Add(&s, newBell(t))
	control := newBell(t)
	p.Watch(control.FD())
	control.Ring()
	deadline := time.Now().Add(10 * time.Second)
	for {
		wake, err := p.Wait(-1)
		if err != nil {
			t.Fatal(err)
		}
		if wake == ring.WakeWatch {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("control channel starved")
		}
	}
}

// TestPollerDeadBell: a doorbell whose descriptor is broken is given up, not spun on.
func TestPollerDeadBell(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	p := ring.NewPoller(ring.PollerConfig{MaxSpin: -1})
	var hung, none source
	p.Add(&hung, ring.DoorbellOf(pipe[0]))
	p.Add(&none, ring.DoorbellOf(-1))
	unix.Close(pipe[1])
	wait(t, p, 2*time.Millisecond, ring.WakeTimeout)
	if st := p.Stats(); st.DeadBells != 1 {
		t.Fatalf("%+v", st)
	}
	none.work.Store(true)
	wait(t, p, -1, ring.WakeWork)
}

// TestPollerRing: bells go with the wait where that can take them, and at once everywhere else. None is lost, none rung twice.
func TestPollerRing(t *testing.T) {
	var asked []unix.PollFd
	fails := unix.EINTR
	poll := func(fds []unix.PollFd, timeout time.Duration) (int, error) {
		if fails != 0 {
			// The rings are done when a wait is interrupted, as they are in abi.SysWait.
			asked = append(asked, fds...)
			err := fails
			fails = 0
			return 0, err
		}
		asked = append(asked, fds...)
		return 0, nil
	}
	var s source
	work, bell, other := newBell(t), newBell(t), newBell(t)
	p := ring.NewPoller(ring.PollerConfig{Poll: poll, MaxSpin: -1})
	p.Add(&s, work)
	p.Ring(bell)
	p.Ring(ring.DoorbellOf(-1))
	p.Ring(other)
	wait(t, p, time.Second, ring.WakeTimeout)
	want := []unix.PollFd{
		{Fd: int32(work.FD()), Events: unix.POLLIN}, {Fd: int32(bell.FD()), Events: ring.PollRing}, {Fd: int32(other.FD()), Events: ring.PollRing},
		{Fd: int32(work.FD()), Events: unix.POLLIN},
	}
	if !slices.Equal(asked, want) {
		t.Errorf("asked for %v, want %v", asked, want)
	}
	if rung, _ := bell.Drain(); rung {
		t.Error("rung here as well")
	}

	rungNow := func(what string) {
		t.Helper()
		if rung, err := bell.Drain(); !rung || err != nil {
			t.Errorf("%s: not rung, %v", what, err)
		}
	}
	asked = nil
	p.Ring(bell)
	s.work.Store(true)
	wait(t, p, -1, ring.WakeWork)
	rungNow("work is there")
	s.work.Store(false)
	p.Ring(bell)
	s.onArm = func() { s.work.Store(true) }
	wait(t, p, -1, ring.WakeWork)
	rungNow("work came before the sleep")
	p.Ring(bell)
	p.Flush()
	rungNow("flushed")
	if len(asked) != 0 {
		t.Errorf("waited: %v", asked)
	}

	p = ring.NewPoller(ring.PollerConfig{Poll: poll, MinSpin: time.Millisecond, MaxSpin: time.Millisecond})
	if runtime.NumCPU() > 1 && runtime.GOMAXPROCS(0) > 1 {
		var later source
		p.Add(&later, newBell(t))
		p.Ring(bell)
		wait(t, p, time.Second, ring.WakeTimeout)
		rungNow("spinning")
	}
	p = ring.NewPoller(ring.PollerConfig{})
	p.Ring(bell)
	rungNow("without a hook")
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	unix.Close(pipe[1])
	p.Ring(ring.DoorbellOf(pipe[0]))
	if st := p.Stats(); st.DeadBells != 1 {
		t.Errorf("%+v", st)
	}
}

// TestPollerAdapts: spinning starts when sleeps are short, and ends when it does not pay.
func TestPollerAdapts(t *testing.T) {
	p := ring.NewPoller(ring.PollerConfig{MaxSpin: 10 * time.Millisecond})
	if p.Stats().Budget != 0 {
		t.Fatalf("budget of a new poller: %v", p.Stats().Budget)
	}
	var s source
	bell := newBell(t)
	p.Add(&s, bell)
	bell.Ring()
	wait(t, p, -1, ring.WakeWork)
	grown := p.Stats().Budget
	if grown == 0 {
		t.Skip("SKIPPED: one processor, or a sleep of over 10 ms")
	}
	for range 30 {
		wait(t, p, 0, ring.WakeTimeout)
	}
	if b := p.Stats().Budget; b != 0 {
		t.Fatalf("budget after 30 vain waits: %v, was %v", b, grown)
	}
	never := ring.NewPoller(ring.PollerConfig{MaxSpin: -1, MinSpin: time.Second})
	never.Add(&s, bell)
	wait(t, never, time.Millisecond, ring.WakeTimeout)
	if st := never.Stats(); st.Spun != 0 {
		t.Fatalf("%+v", st)
	}
}

func TestDoorbell(t *testing.T) {
	b := newBell(t)
	if rung, err := b.Drain(); rung || err != nil {
		t.Fatal(rung, err)
	}
	for range 3 {
		if err := b.Ring(); err != nil {
			t.Fatal(err)
		}
	}
	if rung, err := b.Drain(); !rung || err != nil {
		t.Fatal(rung, err)
	}
	if rung, err := b.Drain(); rung || err != nil {
		t.Fatal("three rings drained twice", err)
	}
	full := [8]byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if _, err := unix.Write(b.FD(), full[:]); err != nil {
		t.Fatal(err)
	}
	if err := b.Ring(); err != nil { // at its limit: rung is rung
		t.Fatal(err)
	}
	nobody := ring.DoorbellOf(-1)
	if err := nobody.Ring(); err != nil {
		t.Fatal(err)
	}
	if rung, err := nobody.Drain(); rung || err != nil || nobody.Close() != nil {
		t.Fatal(rung, err)
	}
	if err := ring.DoorbellOf(1 << 20).Ring(); err == nil {
		t.Fatal("ring of a closed descriptor succeeded")
	}
}

func TestShared(t *testing.T) {
	s, err := ring.NewShared("test", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if len(s.Mem) != unix.Getpagesize() {
		t.Errorf("%d bytes", len(s.Mem))
	}
	if err := unix.Ftruncate(s.FD(), 0); err == nil {
		t.Error("a holder can shrink it")
	}
	for _, size := range []uint64{0, 1 << 63} {
		if _, err := ring.NewShared("test", size); err == nil {
			t.Errorf("%d bytes granted", size)
		}
	}
}

// TestPollerDearSleeps: where a sleep costs more than the longest time of spinning, as where it is an exit from a slow VM, a poller whose work is there
// at once comes to spin, and one whose work comes late does not.
func TestPollerDearSleeps(t *testing.T) {
	if runtime.NumCPU() == 1 || runtime.GOMAXPROCS(0) == 1 {
		t.Skip("SKIPPED: nobody spins on one processor")
	}
	const most = 50 * time.Microsecond
	for _, c := range []struct {
		name  string
		late  time.Duration // beyond what a sleep costs
		spins bool
	}{{"at once", 0, true}, {"late", 2 * time.Millisecond, false}} {
		t.Run(c.name, func(t *testing.T) {
			sleeps := 0
			poll := func(fds []unix.PollFd, _ time.Duration) (int, error) {
				d := 3 * most / 2
				if sleeps++; sleeps > 1 { // the first one finds out what a sleep costs
					d += c.late
				}
				for end := time.Now().Add(d); time.Now().Before(end); {
				}
				fds[0].Revents = unix.POLLIN
				return 1, nil
			}
			p := ring.NewPoller(ring.PollerConfig{MaxSpin: most, Poll: poll})
			var s source
			p.Add(&s, newBell(t))
			for range 50 {
				wait(t, p, -1, ring.WakeWork)
			}
			if got := p.Stats().Budget > 0; got != c.spins {
				t.Errorf("spins: %v, want %v; %+v", got, c.spins, p.Stats())
			}
		})
	}
}
