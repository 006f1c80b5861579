package usernet

import (
	"net/netip"
	"sync"
)

// Bounds of flows: each has a socket of the host's and some buffers.
const (
	maxFlows      = 8192
	flowsPerGuest = 512
)

// flows counts what is under way.
type flows struct {
	mu      sync.Mutex
	byGuest map[netip.Addr]int
	tcp     int
	udp     int
	refused uint64
}

// take reserves a flow for a guest, and returns what gives it back; nil when the guest has its share already.
func (f *flows) take(guest netip.Addr, udp bool) (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byGuest[guest] >= flowsPerGuest || f.tcp+f.udp >= maxFlows {
		f.refused++
		return nil
	}
	count := &f.tcp
	if udp {
		count = &f.udp
	}
	f.byGuest[guest]++
	*count++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		*count--
		if f.byGuest[guest]--; f.byGuest[guest] == 0 {
			delete(f.byGuest, guest)
		}
	}
}

// refuse counts a flow that goes nowhere.
func (f *flows) refuse() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused++
}

// count adds to one of the counters.
func (f *flows) count(counter *int, by int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*counter += by
}
