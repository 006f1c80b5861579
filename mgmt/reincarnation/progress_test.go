package reincarnation

import "testing"

func TestProgress(t *testing.T) {
	for _, c := range []struct {
		name   string
		work   func(i uint64) Work
		stalls bool
	}{
		{"idle", func(i uint64) Work { return Work{Beat: i} }, false},
		{"works", func(i uint64) Work { return Work{Beat: i, Oldest: map[uint64]uint64{1: i}} }, false},
		{"stalls", func(i uint64) Work { return Work{Beat: i, Oldest: map[uint64]uint64{1: 7}} }, true},
		{"stalls one queue", func(i uint64) Work { return Work{Beat: i, Oldest: map[uint64]uint64{1: i, 2: 7}} }, true},
		{"request 0", func(i uint64) Work { return Work{Beat: i, Oldest: map[uint64]uint64{1: 0}} }, true},
		{"slow disk", func(i uint64) Work { return Work{Beat: i, Busy: true, Oldest: map[uint64]uint64{1: 7}} }, false},
		{"slow disk at times", func(i uint64) Work {
			return Work{Beat: i, Busy: i%looksPerPatience == 0, Oldest: map[uint64]uint64{1: 7}}
		}, false},
		{"hangs", func(uint64) Work { return Work{Beat: 3, Oldest: map[uint64]uint64{1: 7}} }, false},
		{"completes late", func(i uint64) Work {
			return Work{Beat: i, Oldest: map[uint64]uint64{1: i / looksPerPatience}}
		}, false},
	} {
		p := Progress{Patience: DefaultPatience}
		stalls := false
		for i := range uint64(5 * looksPerPatience) {
			_, stood := p.Observe(c.work(i + 1))
			stalls = stalls || stood
		}
		if stalls != c.stalls {
			t.Errorf("%s: stalls %t", c.name, stalls)
		}
	}
}
