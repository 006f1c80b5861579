package load

import "time"

// Latencies counts how long requests took, in steps of latencyStep.
type Latencies struct {
	counts [latencySteps]uint64
	n      uint64
}

const (
	latencyStep  = 50 * time.Nanosecond
	latencySteps = 1 << 16 // the last one holds what took longer: more than 3 ms
)

func (l *Latencies) add(d time.Duration) {
	l.counts[min(max(d/latencyStep, 0), latencySteps-1)]++
	l.n++
}

// Quantile returns the time within which the fraction q of the requests was done, up to 3 ms; 0 if there were none.
func (l *Latencies) Quantile(q float64) time.Duration {
	left := uint64(q * float64(l.n))
	for i, n := range l.counts {
		if n > left {
			return time.Duration(i+1) * latencyStep
		}
		left -= n
	}
	return 0
}
