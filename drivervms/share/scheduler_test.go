package share

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

var testCosts = Costs{PerOp: 4096, Quantum: 16 << 10}

// party is a client of a simulated device.
type party struct {
	c       *Client
	backlog bool  // always has work
	size    int64 // bytes of an operation; 0: random
	think   int64 // ns from the end of an operation until the next one; only without backlog
	wakes   int64 // when it has work again

	ops, bytes int64
	waited     int64 // longest time from wakes until served, ns
}

// sim is a device that moves a byte a nanosecond, of cost.
type sim struct {
	t       testing.TB
	s       *Scheduler
	now     int64
	parties []*party
	rnd     *rand.Rand
	piece   int64 // bytes done at once, at most
}

func newSim(t testing.TB, seed uint64) *sim {
	t.Logf("seed %d", seed)
	return &sim{t: t, s: New(testCosts), now: int64(time.Hour), rnd: rand.New(rand.NewPCG(seed, 1)), piece: 16 << 10}
}

func (m *sim) add(cfg Config, p *party) *party {
	m.t.Helper()
	c, err := m.s.Add(p, cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	p.c, p.wakes = c, m.now
	m.parties = append(m.parties, p)
	return p
}

func (m *sim) cost(p *party) int64 { return testCosts.Of(p.ops, p.bytes) }

// step serves one operation or a part of one, or lets time pass until there is one.
func (m *sim) step() {
	next := int64(math.MaxInt64)
	for _, p := range m.parties {
		if p.wakes <= m.now {
			m.s.Ready(p.c, m.now)
		} else {
			next = min(next, p.wakes)
		}
	}
	c, g := m.s.Next(m.now)
	if c == nil {
		at, ok := m.s.NextAt()
		if ok {
			next = min(next, at)
		}
		if next == math.MaxInt64 {
			m.t.Fatal("nobody has work, and nobody will have")
		}
		m.now = max(m.now+1, next)
		return
	}
	p := c.Owner.(*party)
	if c.Held() || g.Cost <= 0 || g.Ops <= 0 || g.Bytes <= 0 {
		m.t.Fatalf("grant %+v, held %t", g, c.Held())
	}
	n := p.size
	if n == 0 {
		n = 512 * (1 + m.rnd.Int64N(64))
	}
	n = min(n, m.piece, max(g.Bytes, 512))
	m.now += testCosts.Of(1, n)
	p.ops++
	p.bytes += n
	m.s.Charge(c, testCosts.Of(1, n), 1, n, m.now)
	if !p.backlog {
		p.waited = max(p.waited, m.now-p.wakes)
		p.wakes = m.now + p.think
		m.s.Idle(c)
	}
}

func (m *sim) run(d time.Duration) {
	for end := m.now + int64(d); m.now < end; {
		m.step()
	}
}

// TestWeights compares clients that always have work with what an ideal fluid scheduler gives them: from any moment on no two of the same group
// are ever further apart than two quanta and two of the largest pieces, each by its weight.
func TestWeights(t *testing.T) {
	for seed := range uint64(20) {
		m := newSim(t, seed)
		var groups [][]*party
		var all []*node
		for g := range 1 + m.rnd.IntN(3) {
			group := Group{Name: fmt.Sprint(g), Limits: Limits{Weight: 1 + m.rnd.Uint32N(1000)}}
			var in []*party
			for range 1 + m.rnd.IntN(4) {
				in = append(in, m.add(Config{Limits: Limits{Weight: 1 + m.rnd.Uint32N(1000)}, Groups: []Group{group}}, &party{backlog: true}))
			}
			groups = append(groups, in)
			all = append(all, in[0].c.n.parent)
		}
		const most = 4096 + 32768 // cost of the largest operation
		type seen struct{ low, high float64 }
		check := func(a, b *node, sa, sb int64, s *seen) {
			x, y := float64(sa)/float64(a.quantum), float64(sb)/float64(b.quantum)
			s.low, s.high = min(s.low, x-y), max(s.high, x-y)
			if bound := 2 + most/float64(a.quantum) + most/float64(b.quantum); s.high-s.low > bound {
				t.Fatalf("seed %d: weights %d and %d: %.2f rounds apart within some time, want at most %.2f", seed, a.limits.Weight, b.limits.Weight, s.high-s.low, bound)
			}
		}
		within := map[[2]*node]*seen{}
		pair := func(a, b *node) *seen {
			k := [2]*node{a, b}
			if within[k] == nil {
				within[k] = &seen{}
			}
			return within[k]
		}
		sum := func(in []*party) (n int64) {
			for _, p := range in {
				n += m.cost(p)
			}
			return n
		}
		for range 20000 {
			m.step()
			for i, in := range groups {
				for k := range in[1:] {
					a, b := in[k], in[k+1]
					check(&a.c.n, &b.c.n, m.cost(a), m.cost(b), pair(&a.c.n, &b.c.n))
				}
				if i > 0 {
					check(all[i-1], all[i], sum(groups[i-1]), sum(in), pair(all[i-1], all[i]))
				}
			}
		}
		for _, in := range groups {
			for _, p := range in {
				if p.ops == 0 {
					t.Errorf("seed %d: a client of weight %d got nothing", seed, p.c.n.limits.Weight)
				}
			}
		}
	}
}

// TestSparse: who asks for less than its share waits for one piece of the others' work and no longer, however much that is, and however heavy they are.
func TestSparse(t *testing.T) {
	for _, others := range []int{1, 5, 25} {
		m := newSim(t, uint64(others))
		small := m.add(Config{}, &party{size: 4096, think: int64(others) * 4e6})
		for range others {
			m.add(Config{Limits: Limits{Weight: MaxWeight}}, &party{backlog: true, size: 1 << 20})
		}
		m.run(time.Duration(others) * time.Second)
		if most := testCosts.Of(2, m.piece+4096); small.waited > most {
			t.Errorf("%d others: waited for %d ns, want at most %d", others, small.waited, most)
		}
		if want := int64(240); small.ops < want {
			t.Errorf("%d others: %d operations, want %d", others, small.ops, want)
		}
	}
}

// TestIdle: an idle client saves up no more than a quantum.
func TestIdle(t *testing.T) {
	m := newSim(t, 1)
	a := m.add(Config{}, &party{backlog: true, size: 8192})
	b := m.add(Config{}, &party{backlog: true, size: 8192})
	b.wakes = m.now + int64(time.Second)
	m.run(time.Second)
	before := m.cost(a)
	m.run(10 * time.Millisecond)
	if d := m.cost(b) - (m.cost(a) - before); d > 2*testCosts.Quantum+testCosts.Of(1, 16<<10) {
		t.Errorf("the client that was idle got %d more", d)
	}
}

// TestGuarantee: a guarantee is kept under any flood, for a client, for one in a group, and for a group.
func TestGuarantee(t *testing.T) {
	const floods = 50
	for name, cfg := range map[string]Config{
		"operations": {Limits: Limits{Weight: 1, OpsGuarantee: 20000}},
		"bytes":      {Limits: Limits{Weight: 1, BytesGuarantee: 80e6}},
		"in a group": {Limits: Limits{OpsGuarantee: 20000}, Groups: []Group{{Name: "g", Limits: Limits{Weight: 1}}}},
		"of a group": {Groups: []Group{{Name: "g", Limits: Limits{Weight: 1, BytesGuarantee: 80e6}}}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newSim(t, 1)
			p := m.add(cfg, &party{backlog: true, size: 4000})
			for range floods {
				m.add(Config{Limits: Limits{Weight: MaxWeight}}, &party{backlog: true, size: 1 << 20})
			}
			m.run(2 * time.Second)
			if p.ops < 39000 {
				t.Errorf("%d operations in 2 s, guaranteed are 20,000 a second", p.ops)
			}
			if p.ops > 60000 {
				t.Errorf("%d operations in 2 s, where weights leave nothing beyond the guarantee of 20,000 a second", p.ops)
			}
		})
	}
}

// TestCap: nobody gets more than its cap, over any time, beyond the burst; and it gets that if there is room.
func TestCap(t *testing.T) {
	const bytesCap, opsCap = 100e6, 5000
	for name, cfg := range map[string]Config{
		"bytes":           {Limits: Limits{BytesCap: bytesCap}},
		"operations":      {Limits: Limits{OpsCap: opsCap}},
		"of a group":      {Groups: []Group{{Name: "g", Limits: Limits{BytesCap: bytesCap, OpsCap: 1e6}}}},
		"with guarantee":  {Limits: Limits{BytesCap: bytesCap, BytesGuarantee: bytesCap}},
		"guarantee in it": {Limits: Limits{BytesGuarantee: 5e8}, Groups: []Group{{Name: "g", Limits: Limits{BytesCap: bytesCap}}}},
	} {
		for _, alone := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, alone %t", name, alone), func(t *testing.T) {
				m := newSim(t, 1)
				p := m.add(cfg, &party{backlog: true, size: 16 << 10})
				if !alone {
					m.add(Config{}, &party{backlog: true, size: 16 << 10})
				}
				type point struct{ at, ops, bytes int64 }
				var points []point
				for range 10 {
					m.run(37 * time.Millisecond)
					points = append(points, point{m.now, p.ops, p.bytes})
				}
				for i, a := range points {
					for _, b := range points[i+1:] {
						s := float64(b.at-a.at)/1e9 + capBurst.Seconds()
						if n := float64(b.bytes - a.bytes); name != "operations" && n > s*bytesCap+16<<10 {
							t.Fatalf("%.0f bytes in %.3f s", n, s)
						}
						if n := float64(b.ops - a.ops); name == "operations" && n > s*opsCap+1 {
							t.Fatalf("%.0f operations in %.3f s", n, s)
						}
					}
				}
				s := float64(points[9].at-points[0].at) / 1e9
				if n := float64(points[9].bytes-points[0].bytes) / s; name != "operations" && n < 0.97*bytesCap {
					t.Errorf("%.0f bytes a second of %.0f", n, float64(bytesCap))
				}
				if n := float64(points[9].ops-points[0].ops) / s; name == "operations" && n < 0.97*opsCap {
					t.Errorf("%.0f operations a second of %d", n, opsCap)
				}
			})
		}
	}
}

// TestSet: other limits hold from then on, also for one that waits for its cap, and groups that nobody is in are forgotten.
func TestSet(t *testing.T) {
	m := newSim(t, 1)
	a := m.add(Config{Limits: Limits{OpsCap: 1}, Groups: []Group{{Name: "g"}}}, &party{backlog: true, size: 4096})
	b := m.add(Config{}, &party{backlog: true, size: 4096})
	m.run(10 * time.Millisecond)
	if a.ops != 1 {
		t.Errorf("%d operations with a cap of 1 a second", a.ops)
	}
	for _, bad := range []Config{{Limits: Limits{Weight: MaxWeight + 1}}, {Groups: []Group{{}}}, {Limits: Limits{OpsCap: 1, OpsGuarantee: 2}}} {
		if err := m.s.Set(a.c, bad, m.now); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if err := m.s.Set(a.c, Config{Limits: Limits{Weight: 300}}, m.now); err != nil {
		t.Fatal(err)
	}
	if len(m.s.groups) != 0 {
		t.Errorf("groups %v", m.s.groups)
	}
	was, other := a.ops, b.ops
	m.run(time.Second)
	if r := float64(a.ops-was) / float64(b.ops-other); r < 2.95 || r > 3.05 {
		t.Errorf("ratio %.2f, want 3", r)
	}
	m.s.Remove(a.c)
	m.s.Remove(a.c)
	m.parties = m.parties[1:]
	m.run(10 * time.Millisecond)
	if m.s.Clients() != 1 {
		t.Error(m.s.Clients())
	}
}

func TestAllocates(t *testing.T) {
	m := newSim(t, 1)
	for i := range 20 {
		m.add(Config{Limits: Limits{OpsCap: uint64(i%3) * 1000, OpsGuarantee: uint64(i%3) * 100}}, &party{backlog: i%2 == 0, think: 10000})
	}
	m.run(50 * time.Millisecond)
	if n := testing.AllocsPerRun(10, func() { m.run(time.Millisecond) }); n > 0 {
		t.Errorf("%.1f allocations", n)
	}
}

// FuzzScheduler has clients come, go, change, work and rest in any order: the scheduler keeps its own rules, and whoever has work and is not held back by
// a cap is served in the end.
func FuzzScheduler(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add([]byte("\x00\x10\x00\x20\x00\x31\x01\x00\x01\x01\x02\x03\x02\x02\x05\x00\x03\x01\x04\x00"))
	f.Fuzz(func(t *testing.T, script []byte) {
		s := New(testCosts)
		now := int64(time.Second)
		var list []*Client
		config := func(b byte) Config {
			l := Limits{Weight: uint32(b%5) * 50}
			if b&8 != 0 {
				l.OpsCap, l.BytesCap = 1000, 1e6
			}
			if b&16 != 0 {
				l.OpsGuarantee, l.BytesGuarantee = 500, 1e5
			}
			c := Config{Limits: l}
			if b&32 != 0 {
				c.Groups = append(c.Groups, Group{Name: "a", Limits: Limits{Weight: uint32(b), BytesCap: uint64(b&64) * 1e5}})
			}
			if b&128 != 0 {
				c.Groups = append(c.Groups, Group{Name: "b", Limits: Limits{OpsGuarantee: 100}})
			}
			return c
		}
		for i := 0; i+1 < len(script) && i < 400; i += 2 {
			b := script[i+1]
			switch {
			case script[i]%8 == 0 || len(list) == 0:
				c, err := s.Add(nil, config(b))
				if err != nil {
					t.Fatal(err)
				}
				list = append(list, c)
			case script[i]%8 == 1:
				s.Ready(list[int(b)%len(list)], now)
			case script[i]%8 == 2:
				s.Idle(list[int(b)%len(list)])
			case script[i]%8 == 3:
				if err := s.Set(list[int(b)%len(list)], config(script[i]^b), now); err != nil {
					t.Fatal(err)
				}
			case script[i]%8 == 4:
				k := int(b) % len(list)
				s.Remove(list[k])
				list = append(list[:k], list[k+1:]...)
			default:
				now += int64(b) * 1000
				if c, g := s.Next(now); c != nil {
					if !c.Working() || c.Held() || g.Cost <= 0 || g.Ops <= 0 || g.Bytes <= 0 {
						t.Fatalf("working %t, held %t, %+v", c.Working(), c.Held(), g)
					}
					s.Charge(c, int64(b)*700, int64(b%4), int64(b)*512, now)
				}
			}
		}
		busy := 0
		for _, c := range list {
			if c.work && !c.n.throttled {
				busy++
			}
		}
		if busy != s.busy || s.Clients() != len(list) {
			t.Fatalf("%d clients of %d, %d busy of %d", s.Clients(), len(list), s.busy, busy)
		}
		for _, c := range list {
			s.Ready(c, now)
		}
		// Guarantees here may be more than there is: time passes.
		served := map[*Client]bool{}
		for range 100000 {
			if len(served) == len(list) {
				return
			}
			now += 1e5
			if c, _ := s.Next(now); c != nil {
				served[c] = true
				s.Charge(c, 4608, 1, 512, now)
			}
		}
		t.Fatalf("%d of %d clients were served", len(served), len(list))
	})
}

func BenchmarkNext(b *testing.B) {
	for _, n := range []int{1, 2, 64, 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New(testCosts)
			for range n {
				c, _ := s.Add(nil, Config{})
				s.Ready(c, 0)
			}
			b.ReportAllocs()
			for i := range b.N {
				c, _ := s.Next(int64(i))
				s.Charge(c, 8192, 1, 4096, int64(i))
			}
		})
	}
}
