package tenant

import (
	"maps"
	"math"
	"time"
)

// Steering corrects what a scheduler gives to the children of one node. A scheduler that divides each processor fairly can still place threads so that
// a domain with few of them beside it on a processor gets more than its part; it does not look further than that. So what each child was given is
// compared with what was due to it, and who has had more is capped for as long as a sibling wants what it has not had. The zero value is ready
// for use. It is not safe for concurrent use.
type Steering struct {
	surplus map[Key]float64 // what a child had beyond what was due, in milli-seconds of a core
}

// Given is what one child got in an interval.
type Given struct {
	Used   Milli // on average
	Wanted Milli // at most: Used, and what its threads waited for a processor; Everything where that is not known
}

// Everything is wanted by a child of which nothing else is known.
const Everything = Milli(math.MaxInt64)

// Tuning of a Steering.
const (
	maxSurplus  = 500.0 // ms of a core: what is remembered of a child's past
	careSurplus = 2.0   // ms of a core: less is left alone
	settleTime  = 0.5   // seconds in which a surplus is to be given back
	leastOfDue  = 0.5   // of what is due to it, a child that gives back keeps this
)

// Step takes what the children of a node were given in an interval and returns the caps of those that are to have less for now. idle is what none of them
// used though it was there: caps that were worked out without it would leave less and less to divide. due tells what is due to each child out of an
// amount, of which those in demand want no more than they say.
func (s *Steering) Step(dt time.Duration, idle Milli, given map[Key]Given, due func(has Milli, demand map[Key]Milli) map[Key]Milli) map[Key]Milli {
	has := idle
	for _, g := range given {
		has += g.Used
	}
	// Who has less than its part although it could have had more wants no more.
	demand := map[Key]Milli{}
	for k, d := range due(has, nil) {
		if g, ok := given[k]; ok && g.Wanted < d {
			demand[k] = g.Wanted
		}
	}
	dues := due(has, demand)
	next := map[Key]float64{}
	hungry := false
	for k, g := range given {
		if d, less := demand[k]; less && d <= g.Used {
			// What it did not want is not owed to it. What it had too much it gives back, by what it leaves of its part beside what the others want.
			if s.surplus[k] > 0 {
				others := maps.Clone(demand)
				delete(others, k)
				full := due(has, others)[k]
				if x := s.surplus[k] + float64(g.Used-full)*dt.Seconds(); x > 0 {
					next[k], dues[k] = x, full
				}
			}
			continue
		}
		x := s.surplus[k] + float64(g.Used-dues[k])*dt.Seconds()
		next[k] = min(max(x, -maxSurplus), maxSurplus)
		hungry = hungry || g.Wanted > g.Used && next[k] < -careSurplus
	}
	s.surplus = next
	if !hungry {
		return nil
	}
	caps := map[Key]Milli{}
	for k, x := range next {
		if x > careSurplus {
			d := float64(dues[k])
			caps[k] = max(Milli(max(d-x/settleTime, d*leastOfDue)), MinCap)
		}
	}
	return caps
}

// Reset forgets the past: there was enough for everybody.
func (s *Steering) Reset() { s.surplus = nil }
