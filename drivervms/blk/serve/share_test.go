package serve

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// What the simulated host takes.
const (
	simCall  = 60000 // ns to leave the VM
	simRound = 1000  // ns of a round
	simByte  = 0.2   // ns
	simTurn  = 1000  // ns of a client between a completion and the next request
	simDisk  = 8 << 20
)

// simDevice is a device in memory that takes its time on a clock of its own.
type simDevice struct {
	*memDevice
	now   int64
	far   func(op *Op) bool // the host has to be asked
	calls int
}

func (d *simDevice) Do(ops []Op) {
	far := false
	for i := range ops {
		op := &ops[i]
		if op.Kind != abi.DevFlush && d.far(op) {
			far, op.Left = true, true
		}
		d.now += int64(simByte * float64(op.Length))
	}
	if far {
		d.now += simCall
	}
	d.memDevice.Do(ops)
}

// simClient is a client with requests outstanding at all times.
type simClient struct {
	id    uint64
	mem   []byte
	m     *ring.Memory
	q     ring.Queue
	drv   *ring.Driver
	typ   uint32
	block uint32
	depth int
	rnd   *rand.Rand
	free  []uint64
	comes int64 // when the next request does; depth 1 only
	asked int64
	took  []int64 // ns, by request; depth 1 only
	log   []byte
}

const (
	simHeads = 64 << 10
	simData  = 128 << 10
)

func newSimClient(t *testing.T, id uint64, block uint32, depth int) *simClient {
	t.Helper()
	c := &simClient{id: id, block: block, depth: depth, rnd: rand.New(rand.NewPCG(id, 0)), log: make([]byte, ring.InflightBytes(512))}
	c.mem = sharedMemory(t, simData+2*max(int(block), 4096))
	var err error
	if c.m, err = ring.NewMemory(ring.Region{Mem: c.mem}); err != nil {
		t.Fatal(err)
	}
	l, err := ring.LayoutOf(512)
	if err != nil {
		t.Fatal(err)
	}
	c.q = l.At(0, guest.DiskFeatures)
	if c.drv, err = ring.NewDriver(c.m, ring.DriverConfig{Queue: c.q}); err != nil {
		t.Fatal(err)
	}
	for i := range depth {
		c.free = append(c.free, uint64(i))
	}
	return c
}

func (c *simClient) client(cfg share.Config) Client {
	return Client{ID: c.id, Name: fmt.Sprint(c.id), Disk: "disk", Features: guest.DiskFeatures | virtioblk.FeatureFlush, Memory: c.m, Share: cfg,
		Queues: []Queue{{Queue: c.q, Log: c.log, Kick: ring.DoorbellOf(-1), Call: ring.DoorbellOf(-1)}}}
}

// step takes what is completed and asks for more.
func (c *simClient) step(t *testing.T, now int64) {
	t.Helper()
	var done [512]ring.Completion
	n, err := c.drv.Used(done[:])
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range done[:n] {
		if st := c.mem[simHeads+64*u.Token+16]; st != virtioblk.StatusOK {
			t.Fatalf("status %d", st)
		}
		c.free = append(c.free, u.Token)
	}
	if n > 0 && c.depth == 1 {
		c.took = append(c.took, now-c.asked)
		c.comes = now + simTurn
	}
	if now < c.comes {
		return
	}
	for _, i := range c.free {
		head := simHeads + 64*i
		h := virtioblk.Header{Type: c.typ, Sector: c.rnd.Uint64N(simDisk/uint64(c.block)) * uint64(c.block) / 512}
		h.Encode(c.mem[head:])
		segs := []ring.Segment{{Addr: head, Len: 16}, {Addr: simData + i%2*uint64(c.block), Len: c.block}, {Addr: head + 16, Len: 1}}
		k := 1
		if c.typ == virtioblk.TypeOut {
			k = 2
		}
		if err := c.drv.Add(segs[:k], segs[k:], i); err != nil {
			t.Fatal(err)
		}
		c.asked = max(now, c.comes)
	}
	c.free = c.free[:0]
	c.drv.Publish()
}

func (c *simClient) p99() int64 {
	slices.Sort(c.took)
	return c.took[len(c.took)*99/100]
}

// simulate has the clients work for a time, and returns what each got, in bytes of cost a second.
func simulate(t *testing.T, s *Server, dev *simDevice, d time.Duration, clients ...*simClient) (got []float64) {
	t.Helper()
	cost := func(c *simClient) int64 {
		n, _ := s.Counters(c.id)
		return Costs.Of(int64(n.Reads+n.Writes), int64(n.ReadBytes+n.WriteBytes))
	}
	begin := dev.now
	var before []int64
	for _, c := range clients {
		c.took = nil
		before = append(before, cost(c))
	}
	for dev.now < begin+int64(d) {
		for _, c := range clients {
			c.step(t, dev.now)
		}
		s.Round()
		dev.now += simRound
		s.now = dev.now
	}
	for i, c := range clients {
		got = append(got, float64(cost(c)-before[i])/d.Seconds())
	}
	return got
}

func newSim(t *testing.T, far func(*Op) bool) (*Server, *simDevice) {
	dev := &simDevice{memDevice: newMemDevice(simDisk), now: int64(time.Hour), far: far}
	s := New(dev, []Disk{{Name: "disk", FD: 7, Size: simDisk}}, ring.PollerConfig{})
	s.clock = func() int64 { return dev.now }
	s.now = dev.now
	return s, dev
}

func weight(w uint32) share.Config { return share.Config{Limits: share.Limits{Weight: w}} }

// TestShares: two clients that always have work get what their weights say, whatever their requests look like and whether the host has to be asked.
func TestShares(t *testing.T) {
	near := func(*Op) bool { return false }
	for _, k := range []struct {
		name string
		typ  uint32
		far  func(*Op) bool
	}{
		{"reads from memory", virtioblk.TypeIn, near},
		{"reads by the host", virtioblk.TypeIn, func(*Op) bool { return true }},
		{"writes", virtioblk.TypeOut, func(*Op) bool { return true }},
		{"large reads by the host", virtioblk.TypeIn, func(op *Op) bool { return op.Length > 4096 }},
	} {
		for _, w := range [][2]uint32{{300, 100}, {100, 300}, {1000, 10}} {
			t.Run(fmt.Sprint(k.name, " ", w), func(t *testing.T) {
				s, dev := newSim(t, k.far)
				a, b := newSimClient(t, 1, 1<<20, 128), newSimClient(t, 2, 4096, 128)
				a.typ, b.typ = k.typ, k.typ
				for i, c := range []*simClient{a, b} {
					if err := s.Attach(c.client(weight(w[i]))); err != nil {
						t.Fatal(err)
					}
				}
				got := simulate(t, s, dev, 60*time.Millisecond, a, b)
				asked, ratio := float64(w[0])/float64(w[1]), got[0]/got[1]
				t.Logf("asked %.3f, got %.3f; %.0f and %.0f MB/s", asked, ratio, got[0]/1e6, got[1]/1e6)
				if math.Abs(ratio/asked-1) > 0.05 {
					t.Errorf("asked %.3f, got %.3f", asked, ratio)
				}
			})
		}
	}
}

// TestSmallBesideFlood: a request of 4 KiB does not wait for the MiBs of another client, whatever their weights: not for a whole request, and not for a whole
// round.
func TestSmallBesideFlood(t *testing.T) {
	for _, k := range []struct {
		name string
		far  func(*Op) bool
		most int64 // ns
	}{
		{"from memory", func(*Op) bool { return false }, 20e3},
		{"by the host", func(*Op) bool { return true }, 3 * simCall},
		{"from memory beside the host", func(op *Op) bool { return op.Length > 4096 }, 3 * simCall},
	} {
		for _, w := range [][2]uint32{{300, 100}, {100, 300}, {100, 100}} {
			s, dev := newSim(t, k.far)
			flood, small := newSimClient(t, 1, 1<<20, 128), newSimClient(t, 2, 4096, 1)
			for i, c := range []*simClient{flood, small} {
				if err := s.Attach(c.client(weight(w[i]))); err != nil {
					t.Fatal(err)
				}
			}
			got := simulate(t, s, dev, 50*time.Millisecond, flood, small)
			t.Logf("%s, weights %v: p99 %d ns, %d requests; %.0f and %.0f MB/s", k.name, w, small.p99(), len(small.took), got[0]/1e6, got[1]/1e6)
			if small.p99() > k.most {
				t.Errorf("%s, weights %v: p99 %d ns, want at most %d", k.name, w, small.p99(), k.most)
			}
		}
	}
}

// TestCaps: a cap holds, the queue of who has reached it is no reason to stay awake, and the others have the rest.
func TestCaps(t *testing.T) {
	s, dev := newSim(t, func(*Op) bool { return true })
	a, b := newSimClient(t, 1, 64<<10, 32), newSimClient(t, 2, 64<<10, 32)
	if err := s.Attach(a.client(share.Config{Limits: share.Limits{OpsCap: 1000, Weight: 10000}})); err != nil {
		t.Fatal(err)
	}
	if err := s.Attach(b.client(share.Config{})); err != nil {
		t.Fatal(err)
	}
	got := simulate(t, s, dev, 300*time.Millisecond, a, b)
	if ops := got[0] / float64(Costs.Of(1, 64<<10)); ops < 950 || ops > 1080 {
		t.Errorf("%.0f operations a second with a cap of 1000", ops)
	}
	if got[1] < 1e9 {
		t.Errorf("the other one got %.0f MB/s", got[1]/1e6)
	}
	for i := 0; !s.clients[1].share.Held(); i++ {
		if s.Round(); i > 1000 {
			t.Fatal("never held back")
		}
	}
	if q := s.clients[1].queues[0]; q.Pending() || !q.Arm() {
		t.Error("a queue that is held back keeps the driver awake")
	}
	if err := s.SetShare(1, share.Config{}); err != nil {
		t.Fatal(err)
	}
	got = simulate(t, s, dev, 100*time.Millisecond, a, b)
	if r := got[0] / got[1]; r < 0.95 || r > 1.05 {
		t.Errorf("without the cap: ratio %.2f", r)
	}
	if err := s.SetShare(3, share.Config{}); err == nil {
		t.Error("a share of nobody was set")
	}
}

// TestParts: what is performed in parts arrives whole, is completed once, and by Detach at the latest; and the log has it until then.
func TestParts(t *testing.T) {
	s, dev := newSim(t, func(*Op) bool { return false })
	for i := range dev.data {
		dev.data[i] = byte(i >> 12 * 7)
	}
	a, b := newSimClient(t, 1, 1<<20, 1), newSimClient(t, 2, 4096, 1)
	for _, c := range []*simClient{a, b} {
		if err := s.Attach(c.client(share.Config{})); err != nil {
			t.Fatal(err)
		}
	}
	simulate(t, s, dev, 10*time.Millisecond, a, b)
	if len(a.took) == 0 || len(b.took) == 0 {
		t.Fatalf("%d and %d requests", len(a.took), len(b.took))
	}
	clear(a.mem[simData:])
	a.comes = 0
	for s.clients[1].queues[0].part.parted { // until it is between two requests
		s.Round()
	}
	a.step(t, dev.now)
	a.comes = 0
	a.step(t, dev.now)
	for s.Round(); !s.clients[1].queues[0].part.parted; {
		s.Round()
	}
	if n := ring.CountInflight(a.log); n != 1 {
		t.Errorf("%d requests in the log", n)
	}
	calls := s.Requests
	s.Detach(1)
	if s.Requests != calls+1 || ring.CountInflight(a.log) != 0 {
		t.Errorf("%d requests completed by Detach, %d left in the log", s.Requests-calls, ring.CountInflight(a.log))
	}
	h := virtioblk.DecodeHeader(a.mem[simHeads:])
	if want := dev.data[h.Sector*512:][:1<<20]; !bytes.Equal(a.mem[simData:][:1<<20], want) {
		t.Error("other data")
	}
}

// TestUses: the time of a round is charged to those whose work it was, and all of it.
func TestUses(t *testing.T) {
	s, dev := newSim(t, func(*Op) bool { return true })
	cpu := time.Duration(0)
	s.CPU = func() time.Duration { return cpu }
	a, b := newSimClient(t, 1, 256<<10, 32), newSimClient(t, 2, 4096, 1)
	for _, c := range []*simClient{a, b} {
		if err := s.Attach(c.client(share.Config{})); err != nil {
			t.Fatal(err)
		}
	}
	begin := dev.now
	simulate(t, s, dev, 50*time.Millisecond, a, b)
	cpu = time.Duration(dev.now - begin)
	ua, ub := s.Uses(1)[0], s.Uses(2)[0]
	if sum := ua.CPU + ub.CPU; sum < cpu*97/100 || sum > cpu || ub.CPU == 0 || ua.CPU < 5*ub.CPU {
		t.Errorf("%v and %v were charged, %v used", ua.CPU, ub.CPU, cpu)
	}
	if n, _ := s.Counters(1); ua.Ops != n.Reads || ua.Bytes != n.ReadBytes {
		t.Errorf("%+v, counted %+v", ua, n)
	}
	if s.Detach(2); s.Uses(2) != nil || s.Own() != cpu-ua.CPU-ub.CPU {
		t.Errorf("%v is nobody's", s.Own())
	}
}
