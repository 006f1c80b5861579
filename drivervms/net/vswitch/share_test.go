package vswitch

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// crowd is two flows through one switch, whose clock goes by what is sent.
type crowd struct {
	*bed
	flows []*blaster
}

// newCrowd has the first client of each pair send frames of a size to the second one, and get so much of the switch.
func newCrowd(t *testing.T, sizes []int, shares []share.Config) *crowd {
	c := &crowd{bed: newBed(t, nil)}
	for i, size := range sizes {
		x, y := newVM(t, uint64(2*i+1), portAt(2*i+1, uint16(i)), vmOptions{size: 256}), newVM(t, uint64(2*i+2), portAt(2*i+2, uint16(i)), vmOptions{size: 256})
		client := x.client()
		client.Share = shares[i]
		if err := c.Attach(client); err != nil {
			t.Fatal(err)
		}
		c.bed.attach(y)
		c.flows = append(c.flows, newBlaster(x, y, between(x, y, string(make([]byte, size-42)))))
	}
	return c
}

// go on for rounds, and return the cost of what each has sent a second.
func (c *crowd) work(t *testing.T, rounds int) (got []float64) {
	cost := func(i int) int64 {
		n, _ := c.Counters(uint64(2*i + 1))
		return Costs.Of(int64(n.TxPackets), int64(n.TxBytes))
	}
	begin := c.time
	var before []int64
	for i := range c.flows {
		before = append(before, cost(i))
	}
	for range rounds {
		for _, f := range c.flows {
			f.fill()
		}
		n := c.Round()
		c.time += int64(300*n + 200)
		for _, f := range c.flows {
			for f.drain() > 0 {
			}
		}
	}
	for i := range c.flows {
		got = append(got, float64(cost(i)-before[i])/(float64(c.time-begin)/1e9))
	}
	return got
}

// TestShares: two clients that always send get what their weights say, whatever the size of their frames.
func TestShares(t *testing.T) {
	for _, w := range [][2]uint32{{300, 100}, {100, 300}, {1000, 10}} {
		for _, sizes := range [][]int{{1500, 64}, {64, 64}} {
			weight := func(w uint32) share.Config { return share.Config{Limits: share.Limits{Weight: w}} }
			c := newCrowd(t, sizes, []share.Config{weight(w[0]), weight(w[1])})
			got := c.work(t, 5000)
			asked, ratio := float64(w[0])/float64(w[1]), got[0]/got[1]
			t.Logf("%v: asked %.3f, got %.3f", sizes, asked, ratio)
			if math.Abs(ratio/asked-1) > 0.05 {
				t.Errorf("%v: asked %.3f, got %.3f", sizes, asked, ratio)
			}
			if err := c.SetShare(1, weight(w[1])); err != nil {
				t.Fatal(err)
			}
			if got = c.work(t, 5000); math.Abs(got[0]/got[1]-1) > 0.05 {
				t.Errorf("%v: equal weights, got %.3f", sizes, got[0]/got[1])
			}
		}
	}
}

// TestCap: a cap on frames holds, and the queue of who has reached it is no reason to stay awake.
func TestCap(t *testing.T) {
	c := newCrowd(t, []int{64, 64}, []share.Config{{Limits: share.Limits{OpsCap: 50000}}, {}})
	got := c.work(t, 20000)
	if n := got[0] / float64(Costs.Of(1, 64)); n < 45000 || n > 65000 {
		t.Errorf("%.0f frames a second with a cap of 50,000", n)
	}
	if got[1] < 10*got[0] {
		t.Errorf("the other one got %.0f", got[1])
	}
	for i := 0; !c.ports[1].share.Held(); i++ {
		if c.flows[0].fill(); i > 1000 {
			t.Fatal("never held back")
		}
		c.Round()
	}
	if q := c.ports[1].tx[0]; q.Pending() || !q.Arm() {
		t.Error("a queue that is held back keeps the switch awake")
	}
	if wake, err := c.Wait(-1); err != nil || wake != ring.WakeTimeout && wake != ring.WakeWork {
		t.Error(wake, err)
	}
	if err := c.SetShare(9, share.Config{}); err == nil {
		t.Error("a share of nobody was set")
	}
}

// TestUses: the time is charged to who sends, and for what comes from the uplink to who receives.
func TestUses(t *testing.T) {
	up := &fakeUplink{}
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
	s := newBed(t, up, a, b)
	var cpu time.Duration
	s.CPU = func() time.Duration { return cpu }
	a.send(between(a, b, "x"))
	s.time += 1e5
	s.Round()
	s.time += 1000
	s.Round()
	cpu = 1000
	ua, ub := s.Uses(1), s.Uses(2)
	if fmt.Sprint(ua) == fmt.Sprint(ub) || ua[1].Ops != 1 || ua[1].CPU != 1000 || ub[0].Ops != 1 || ub[0].CPU != 0 {
		t.Errorf("sender %+v, receiver %+v", ua, ub)
	}
	f := between(b, a, "in")
	copy(f[6:], []byte{2, 0xaa, 0, 0, 0, 1})
	copy(f[26:], []byte{9, 9, 9, 9})
	up.push(virtionet.Header{}, f)
	s.up.ready = true
	s.Round()
	s.time += 1000
	s.Round()
	cpu = 3000
	if ua = s.Uses(1); ua[0].Ops != 1 || ua[0].CPU != 2000 || ua[1].CPU != 1000 {
		t.Errorf("receiver from the uplink %+v; %v charged to nobody", ua, s.Own())
	}
}
