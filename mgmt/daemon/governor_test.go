package daemon

import (
	"runtime"
	"testing"
	"time"

	"github.com/grailos/grail/mgmt/fence"
	"github.com/grailos/grail/mgmt/tenant"
)

// Beside a host whose processes count for as much as they like, the weight grows until what is owed is delivered, and falls back when that is not
// needed any more.
func TestGuaranteesHoldBesideABusyHost(t *testing.T) {
	total := float64(runtime.NumCPU() * 1000)
	owed := tenant.Milli(total * 0.9)
	least := fence.BesideHost(1)
	var weight uint64
	got := tenant.Milli(0)
	run := func(hostTasks, stolen float64, steps int) {
		for range steps {
			own := float64(max(weight, least))
			host := hostTasks * float64(fence.BesideHost(1))
			there := total * (1 - stolen)
			got = tenant.Milli(there * own / (own + host))
			due := tenant.Milli(float64(owed) * (1 - stolen))
			weight = raise(weight, least, rivalry{Owed: due, Got: got, Rest: tenant.Milli(there) - due, Host: tenant.Milli(there) - got})
		}
	}
	run(float64(10*runtime.NumCPU()), 0, 100)
	if got < owed-2*owedSlack {
		t.Errorf("%v of %v owed beside a busy host", got, owed)
	}
	run(0, 0, 200)
	if weight != 0 {
		t.Errorf("weight %d is left beside an idle host", weight)
	}
	run(0, 0.5, 200)
	if weight != 0 {
		t.Errorf("weight %d where others took what is lacking", weight)
	}
	run(1e9, 0, 200)
	if weight != fence.Parts {
		t.Errorf("weight %d beside a host that cannot be outweighed", weight)
	}
}

// What there was is summed up over a while, and what others have taken is nobody's.
func TestRivalry(t *testing.T) {
	total := tenant.Milli(runtime.NumCPU() * 1000)
	var b beside
	if _, ok := b.rivalry(machineTime{all: 1000, idle: 10}); ok {
		t.Error("a rivalry without a beginning")
	}
	b.add(total/2, total*8/10, besideTime/2)
	if _, ok := b.rivalry(machineTime{all: 1100, idle: 10}); ok {
		t.Error("a rivalry of half the time")
	}
	b.add(total/4, total*8/10, besideTime/2)
	got, ok := b.rivalry(machineTime{all: 1200, idle: 30, stolen: 100})
	want := rivalry{Owed: total * 4 / 10, Got: total * 3 / 8, Rest: total / 10, Host: total * 25 / 1000}
	if !ok || got != want {
		t.Errorf("%+v, %v, want %+v", got, ok, want)
	}
}

func TestIdleOf(t *testing.T) {
	for _, c := range []struct {
		before, now machineTime
		want        tenant.Milli
	}{
		{machineTime{100, 50, 0}, machineTime{120, 60, 10}, 1000},
		{machineTime{100, 50, 0}, machineTime{120, 50, 0}, 0},
		{machineTime{100, 50, 0}, machineTime{120, 51, 0}, 100},
		{machineTime{100, 50, 0}, machineTime{100, 50, 0}, 2000},
	} {
		if got := c.now.since(c.before).idleOf(2000); got != c.want {
			t.Errorf("from %v to %v: %d", c.before, c.now, got)
		}
	}
	if m, ok := readMachine(); !ok || m.all == 0 || m.idle+m.stolen > m.all {
		t.Errorf("/proc/stat says %+v, %v", m, ok)
	}
}

// What threads lack is what they waited for, unless they all sleep.
func TestThreadsLack(t *testing.T) {
	const dt = 100 * time.Millisecond
	ms := func(n int) uint64 { return uint64(n) * uint64(time.Millisecond) }
	for _, c := range []struct {
		name     string
		was, now threads
		want     tenant.Milli
	}{
		{"waited and ready", threads{1: {ms(10), ms(5), 'S'}}, threads{1: {ms(60), ms(35), 'R'}}, 300},
		{"waited and asleep", threads{1: {ms(10), ms(5), 'R'}}, threads{1: {ms(60), ms(35), 'S'}}, 0},
		{"waited for little", threads{1: {ms(10), ms(5), 'R'}}, threads{1: {ms(60), ms(7), 'R'}}, 0},
		{"waits since before", threads{1: {ms(10), ms(5), 'R'}}, threads{1: {ms(10), ms(5), 'R'}}, 1000},
		{"two of them", threads{1: {ms(10), ms(5), 'R'}, 2: {0, 0, 'R'}}, threads{1: {ms(10), ms(5), 'R'}, 2: {ms(1), ms(50), 'S'}}, 1500},
		{"no longer than it was", threads{1: {0, 0, 'R'}}, threads{1: {ms(1), ms(500), 'R'}}, 1000},
		{"new", threads{}, threads{1: {ms(1), ms(50), 'R'}}, 0},
		{"another by the same number", threads{1: {ms(10), ms(5), 'R'}}, threads{1: {ms(1), ms(50), 'R'}}, 0},
		{"waits for a disk", threads{1: {ms(10), ms(5), 'D'}}, threads{1: {ms(10), ms(5), 'D'}}, 0},
	} {
		if got := c.now.lacked(c.was, dt); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
