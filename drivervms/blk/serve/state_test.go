package serve

import (
	"reflect"
	"testing"

	"github.com/grailos/grail/hv/state"
	"github.com/grailos/grail/ring"
)

// TestCountersGoOn has two successors take over what a server counted.
func TestCountersGoOn(t *testing.T) {
	region := make([]byte, state.MinSize)
	for generation := range uint64(3) {
		s := New(&memDevice{data: make([]byte, 1<<20)}, nil, ring.PollerConfig{})
		if _, err := s.TakeOver(region); err != nil {
			t.Fatal(err)
		}
		c := s.countersOf(7)
		if c.Reads != generation || c.ReadBytes != 4096*generation {
			t.Errorf("generation %d: %+v", generation, *c)
		}
		c.Reads++
		c.ReadBytes += 4096
		if other := s.countersOf(8 + generation); *other != (Counters{}) {
			t.Errorf("generation %d: a new client begins with %+v", generation, *other)
		}
	}
	// Another version's are not taken.
	if _, _, err := state.Open(region, StateVersion+1, nil); err != nil {
		t.Fatal(err)
	}
	s := New(&memDevice{data: make([]byte, 1<<20)}, nil, ring.PollerConfig{})
	if _, err := s.TakeOver(region); err != nil || *s.countersOf(7) != (Counters{}) {
		t.Errorf("%v, %+v", err, *s.countersOf(7))
	}
	if _, err := s.TakeOver(make([]byte, 3)); err == nil {
		t.Error("a region of 3 bytes was taken over")
	}
}

// TestStateVersion fails when Counters changes and StateVersion does not: a successor would take one counter for another.
func TestStateVersion(t *testing.T) {
	if n := reflect.TypeFor[Counters]().Size() / 8; StateVersion != 1 || n != 7 {
		t.Errorf("Counters has %d words, and StateVersion is %d: change both, and then this test", n, StateVersion)
	}
}
