package daemon

import (
	"runtime"
	"testing"

	"github.com/grailos/grail/mgmt/fence"
	"github.com/grailos/grail/mgmt/tenant"
)

// Beside a host whose processes count for as much as they like, the weight grows until what is owed is delivered, and falls back when that is not
// needed any more.
func TestGuaranteesHoldBesideABusyHost(t *testing.T) {
	total := float64(runtime.NumCPU() * 1000)
	key := tenant.Key{Kind: tenant.VM, Name: "v"}
	owed := tenant.Milli(total * 0.9)
	var weight uint64
	got := tenant.Milli(0)
	run := func(hostTasks float64, steps int) {
		for range steps {
			own := float64(max(weight, fence.BesideHost(runtime.NumCPU())))
			host := hostTasks * float64(fence.BesideHost(1))
			got = tenant.Milli(total * own / (own + host))
			weight = raise(weight, map[tenant.Key]tenant.Given{key: {Used: got, Hungry: true}}, owed)
		}
	}
	run(float64(10*runtime.NumCPU()), 100)
	if got < owed-2*owedSlack {
		t.Errorf("%v of %v owed beside a busy host", got, owed)
	}
	run(0, 200)
	if weight != 0 {
		t.Errorf("weight %d is left beside an idle host", weight)
	}
	run(1e9, 200)
	if weight != fence.Parts {
		t.Errorf("weight %d beside a host that cannot be outweighed", weight)
	}
}

func TestIdleSince(t *testing.T) {
	for _, c := range []struct {
		before, now machineTime
		want        uint64
	}{
		{machineTime{100, 50}, machineTime{120, 60}, 50},
		{machineTime{100, 50}, machineTime{120, 50}, 0},
		{machineTime{100, 50}, machineTime{100, 50}, 100},
	} {
		if got := c.now.idleSince(c.before); got != c.want {
			t.Errorf("from %v to %v: %d %%", c.before, c.now, got)
		}
	}
	if m, ok := readMachine(); !ok || m.all == 0 || m.idle > m.all {
		t.Errorf("/proc/stat says %+v, %v", m, ok)
	}
}
