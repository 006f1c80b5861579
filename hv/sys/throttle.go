package sys

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// throttlePeriod is how often a throttle looks. What a guest uses beyond its rate meanwhile, it does without afterwards.
const throttlePeriod = 10 * time.Millisecond

// throttle keeps a VM's process to a rate of processor time where the host's kernel is not allowed to: a bucket that fills at the rate, and that
// the process's own clock empties, the VMM's threads included. While it is empty, no vCPU enters the guest. The zero value lets everything pass.
type throttle struct {
	closed atomic.Bool // no vCPU enters

	mu     sync.Mutex
	opened chan struct{} // closed when vCPUs may enter again; nil while they may
	stop   chan struct{} // ends the present loop; nil: there is none
}

// Limit keeps the guest, with all of the VMM, to thousandths of a core from now on; 0 for no limit.
func (g *Guest) Limit(milli int) error {
	g.throttle.set(g, milli)
	return nil
}

func (th *throttle) set(g *Guest, milli int) {
	th.mu.Lock()
	if th.stop != nil {
		close(th.stop)
		th.stop = nil
	}
	if milli > 0 {
		th.stop = make(chan struct{})
		go th.run(g, milli, th.stop)
	}
	th.mu.Unlock()
	th.open()
}

// run fills and empties the bucket.
func (th *throttle) run(g *Guest, milli int, stop chan struct{}) {
	tick := time.NewTicker(throttlePeriod)
	defer tick.Stop()
	var bucket time.Duration
	at, used := time.Now(), processTime()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		now, total := time.Now(), processTime()
		bucket = fill(bucket, now.Sub(at), total-used, milli)
		at, used = now, total
		if bucket >= 0 {
			th.open()
			continue
		}
		if !th.shut(stop) {
			return
		}
		g.mu.Lock()
		for _, t := range g.threads {
			t.cpu.Kick()
		}
		g.mu.Unlock()
	}
}

// fill returns what is in the bucket after an interval in which so much was used. It holds what a period brings, and no more: who was idle has not
// saved anything.
func fill(bucket, interval, used time.Duration, milli int) time.Duration {
	return min(bucket+interval*time.Duration(milli)/1000-used, throttlePeriod*time.Duration(milli)/1000)
}

// shut keeps vCPUs from entering, unless the loop with that stop has been ended.
func (th *throttle) shut(stop chan struct{}) bool {
	th.mu.Lock()
	defer th.mu.Unlock()
	if th.stop != stop {
		return false
	}
	if th.opened == nil {
		th.opened = make(chan struct{})
	}
	th.closed.Store(true)
	return true
}

// open lets vCPUs enter again.
func (th *throttle) open() {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.closed.Store(false)
	if th.opened != nil {
		close(th.opened)
		th.opened = nil
	}
}

// wait returns when vCPUs may enter.
func (th *throttle) wait() {
	th.mu.Lock()
	opened := th.opened
	th.mu.Unlock()
	if opened != nil {
		<-opened
	}
}

// processTime returns the processor time that all threads of this process have used.
func processTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
