package tenant

import (
	"fmt"
	"maps"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A scheduler that gives children what it likes, as long as caps hold: steered, everybody has what is due in the end.
func TestSteeringCorrectsAScheduler(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const total, dt = Milli(2000), 100 * time.Millisecond
		tree, err := New(cores(total), Share{})
		if err != nil {
			rt.Fatal(err)
		}
		n := rapid.IntRange(2, 8).Draw(rt, "children")
		bias := map[Key]float64{} // what the scheduler makes of what is due
		for i := range n {
			k := Key{VM, fmt.Sprint(i)}
			g := Milli(rapid.IntRange(20, int(total)/n).Draw(rt, "guarantee"))
			if err := tree.Add(Root, k, cores(g)); err != nil {
				rt.Fatal(err)
			}
			tree.SetLive(k, true)
			bias[k] = rapid.Float64Range(0.6, 1.5).Draw(rt, "bias")
		}
		due := func(has Milli, demand map[Key]Milli) map[Key]Milli { return tree.Divide(HostKey, has, demand) }
		want := due(total, nil)
		var s Steering
		caps := map[Key]Milli{}
		sum := map[Key]float64{}
		const steps = 300
		for range steps {
			given := schedule(total, want, bias, caps)
			for k, g := range given {
				sum[k] += float64(g.Used)
			}
			caps = s.Step(dt, 0, given, due)
		}
		for k, w := range want {
			if off := math.Abs(sum[k]/steps-float64(w)) / float64(total); off > 0.01 {
				rt.Errorf("%v got %.0f of %v due, %.1f %% of the machine away", k, sum[k]/steps, w, 100*off)
			}
		}
	})
}

// schedule gives children total in proportion to their due times bias, but no more than their caps.
func schedule(total Milli, due map[Key]Milli, bias map[Key]float64, caps map[Key]Milli) map[Key]Given {
	used := map[Key]Milli{}
	left := total
	for round := 0; round <= len(due) && left > 0; round++ {
		var weights float64
		for k, d := range due {
			if c, capped := caps[k]; !capped || used[k] < c {
				weights += float64(d) * bias[k]
			}
		}
		if weights == 0 {
			break
		}
		share := left
		for k, d := range due {
			c, capped := caps[k]
			if capped && used[k] >= c {
				continue
			}
			more := Milli(float64(share) * float64(d) * bias[k] / weights)
			if capped {
				more = min(more, c-used[k])
			}
			used[k] += more
			left -= more
		}
	}
	given := map[Key]Given{}
	for k := range due {
		given[k] = Given{Used: used[k], Wanted: Everything}
	}
	return given
}

// Nobody is held back for the sake of one that wants no more.
func TestSteeringLeavesASatisfiedSiblingsPart(t *testing.T) {
	tree := host(t)
	a, b := Key{VM, "a"}, Key{VM, "b"}
	for k, g := range map[Key]Milli{a: 1500, b: 300} {
		add(t, tree, "", VM, k.Name, cores(g))
		tree.SetLive(k, true)
	}
	due := func(has Milli, demand map[Key]Milli) map[Key]Milli { return tree.Divide(HostKey, has, demand) }
	var s Steering
	for range 50 {
		if caps := s.Step(100*time.Millisecond, 0, map[Key]Given{a: {Used: 200, Wanted: 200}, b: {Used: 1800, Wanted: Everything}}, due); len(caps) != 0 {
			t.Fatalf("capped: %v", caps)
		}
	}
	// As soon as it wants its part, it is given it, and not what it did not want before.
	caps := s.Step(100*time.Millisecond, 0, map[Key]Given{a: {Used: 200, Wanted: Everything}, b: {Used: 1800, Wanted: Everything}}, due)
	if len(caps) != 1 || caps[b] == 0 || caps[b] > 300+100 {
		t.Errorf("caps: %v", caps)
	}
	s.Reset()
	if caps := s.Step(time.Millisecond, 0, map[Key]Given{a: {Used: 1600, Wanted: Everything}, b: {Used: 400, Wanted: Everything}}, due); len(caps) != 0 {
		t.Errorf("capped without a past: %v", caps)
	}
}

// Who had too much and sleeps gives it back from what the others leave it, not from the little that would be its part if all of them were busy.
func TestSteeringBesideManySleepers(t *testing.T) {
	tree := host(t)
	busy, late := Key{VM, "busy"}, Key{VM, "late"}
	add(t, tree, "", VM, busy.Name, cores(1000))
	tree.SetLive(busy, true)
	asleep := map[Key]Given{}
	for i := range 60 {
		k := Key{VM, fmt.Sprint(i)}
		add(t, tree, "", VM, k.Name, cores(10))
		tree.SetLive(k, true)
		asleep[k] = Given{}
	}
	add(t, tree, "", VM, late.Name, cores(10))
	tree.SetLive(late, true)
	due := func(has Milli, demand map[Key]Milli) map[Key]Milli { return tree.Divide(HostKey, has, demand) }
	step := func(s *Steering, u, l Given) map[Key]Milli {
		given := maps.Clone(asleep)
		given[busy], given[late] = u, l
		return s.Step(100*time.Millisecond, 2000-u.Used-l.Used, given, due)
	}
	var s Steering
	if caps := step(&s, Given{Used: 500, Wanted: 1000}, Given{Used: 1500, Wanted: Everything}); caps[late] == 0 {
		t.Fatalf("not held back: %v", caps)
	}
	for range 10 {
		if caps := step(&s, Given{Used: 950, Wanted: 1000}, Given{Used: 100, Wanted: 100}); caps[late] != 0 && caps[late] < 400 {
			t.Fatalf("starved: %v", caps)
		}
	}
	if caps := step(&s, Given{Used: 950, Wanted: 1000}, Given{Used: 100, Wanted: 100}); caps[late] != 0 {
		t.Errorf("still held back: %v", caps)
	}
}
