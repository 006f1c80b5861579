package daemon

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grailos/grail/mgmt/reincarnation"
)

// How the first completed request after a recovery is looked for.
const (
	firstPause = 200 * time.Microsecond
	firstLimit = 5 * time.Second
	firstQuiet = 50 // looks in a row that find nothing waiting
)

// askPeriod is how often a driver with work pending is asked whom it serves.
const askPeriod = time.Second

// monitor watches an instance that serves: its heartbeat, and its first completed request for the record of the
// recovery that it is part of, if any. stop returns when nothing is watched any more.
func (dr *driver) monitor(inst *driverInstance, rec *recovery) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	if rec != nil {
		wg.Go(func() {
			dr.awaitFirst(inst, rec, quit)
			rec.complete()
		})
	}
	wg.Go(func() { dr.watchBeat(inst, quit) })
	wg.Go(func() { dr.watchIdle(inst, quit) })
	wg.Go(func() { dr.watchProgress(inst, quit) })
	wg.Go(func() { dr.watchState(inst, quit) })
	wg.Go(func() { dr.watchDisks(inst, quit) })
	wg.Go(func() { dr.watchRings(inst, quit) })
	return func() {
		close(quit)
		wg.Wait()
	}
}

// awaitFirst takes the time of the instance's first completed request, if requests wait for it.
func (dr *driver) awaitFirst(inst *driverInstance, rec *recovery, quit <-chan struct{}) {
	limit := time.Now().Add(firstLimit)
	for quiet := 0; quiet < firstQuiet && time.Now().Before(limit); quiet++ {
		if inst.requests() > 0 {
			rec.crash.First = time.Now()
			return
		}
		// A request is completed a little before it is counted.
		if len(dr.pendingClients(inst)) > 0 {
			quiet = 0
		}
		select {
		case <-quit:
			return
		case <-time.After(firstPause):
		}
	}
}

// watchBeat declares the instance hung when it is. When the policy changes, it begins anew.
func (dr *driver) watchBeat(inst *driverInstance, quit <-chan struct{}) {
	for again := true; again; {
		c, tuned := dr.tuning()
		again = dr.watchBeatBy(inst, fromMs(c.HeartbeatMs), quit, tuned)
	}
}

// watchBeatBy is watchBeat for one period. It reports whether it ended because the policy has changed.
func (dr *driver) watchBeatBy(inst *driverInstance, period time.Duration, quit, tuned <-chan struct{}) bool {
	h := reincarnation.Heartbeat{Period: period}
	var threads schedule
	asked := time.Now()
	for range inst.looks(h.Interval(), quit, tuned) {
		pending := dr.pendingClients(inst)
		if len(pending) > 0 && time.Since(asked) > askPeriod {
			// Others may keep the driver beating while one client was given up.
			asked = time.Now()
			dr.confirm(inst, pending)
		}
		sample := reincarnation.Sample{Beat: inst.beat(), Busy: inst.hostBusy(), Pending: len(pending) > 0}
		switch h.Observe(time.Now(), sample, func() time.Duration { return threads.starved() }) {
		case reincarnation.Suspect:
			threads.begin(inst.proc.PID)
			for _, c := range pending {
				c.kick()
			}
			// A driver that took a fault, or got no memory, is lost, even if it is still busy saying so.
			st, err := inst.instance.status(h.Period)
			if err == nil && st.Starved {
				inst.starved.Store(true)
			}
			if err == nil && (st.Starved || st.Fault != nil && st.Fault.Signal != 0) {
				inst.declareHung(h.Since())
				return false
			}
		case reincarnation.Hung:
			if dr.confirm(inst, pending) && inst.beat() == sample.Beat {
				inst.declareHung(h.Since())
				return false
			}
		}
	}
	return closed(tuned)
}

// How a driver that has nothing to do is seen to be alive. One that hangs between a completion and its client's doorbell leaves a ring in which nothing
// waits, and a client that does.
const (
	// idleProbe is how long it may be silent before that is looked into.
	idleProbe = time.Second
	// idlePatience is how long it may be silent then, the second half of it with its doorbell rung. There is no hurry, and the host may be slow.
	idlePatience = 2 * time.Second
)

// watchIdle declares the instance hung when it does not beat although its doorbell is rung, while nothing waits in any ring.
func (dr *driver) watchIdle(inst *driverInstance, quit <-chan struct{}) {
	h := reincarnation.Heartbeat{Period: idlePatience}
	var threads schedule
	beat, since := inst.beat(), time.Now()
	for range inst.looks(h.Interval(), quit, nil) {
		now := inst.beat()
		if now != beat || len(dr.pendingClients(inst)) > 0 {
			beat, since = now, time.Now()
		}
		var probed []*client
		if time.Since(since) >= idleProbe {
			probed = dr.anyClient(inst)
		}
		sample := reincarnation.Sample{Beat: now, Busy: inst.hostBusy(), Pending: len(probed) > 0}
		switch h.Observe(time.Now(), sample, func() time.Duration { return threads.starved() }) {
		case reincarnation.Suspect:
			threads.begin(inst.proc.PID)
			probed[0].kick()
		case reincarnation.Hung:
			if dr.confirm(inst, probed) && inst.beat() == now {
				inst.declareHung(h.Since())
				return
			}
		}
	}
}

// anyClient returns one client that inst serves, if there is one.
func (dr *driver) anyClient(inst *driverInstance) []*client {
	dr.mu.Lock()
	list := dr.clientList()
	dr.mu.Unlock()
	i := slices.IndexFunc(list, func(c *client) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.on == inst && !c.dead
	})
	if i < 0 {
		return nil
	}
	return list[i : i+1]
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// looks yields once an interval, until quit or tuned is closed or the instance is over.
func (i *driverInstance) looks(interval time.Duration, quit, tuned <-chan struct{}) func(yield func() bool) {
	return func(yield func() bool) {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tuned:
				return
			case <-i.ended:
				return
			case <-i.hung:
				return
			case <-tick.C:
				if !yield() {
					return
				}
			}
		}
	}
}

// attachPatience is how many heartbeat periods a driver may be silent over a new client, whose memory it has to map.
const attachPatience = 4

// expectBeat declares the instance hung when it does not beat although it was given something to do, until stop is
// called. It is for times when no client's ring tells that.
func (i *driverInstance) expectBeat(period time.Duration) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		h := reincarnation.Heartbeat{Period: attachPatience * period}
		var threads schedule
		for range i.looks(h.Interval(), quit, nil) {
			sample := reincarnation.Sample{Beat: i.beat(), Busy: i.hostBusy(), Pending: true}
			switch h.Observe(time.Now(), sample, func() time.Duration { return threads.starved() }) {
			case reincarnation.Suspect:
				threads.begin(i.proc.PID)
			case reincarnation.Hung:
				i.declareHung(h.Since())
				return
			}
		}
	})
	return func() {
		close(quit)
		wg.Wait()
	}
}

// confirm asks the VM's process which clients the driver serves. A client whose ring was found broken is not served, and
// its requests stay pending for ever: that is no hang. It reports whether the driver serves any of them.
func (dr *driver) confirm(inst *driverInstance, pending []*client) bool {
	st, err := inst.instance.status(callTimeout)
	if inst.gone() {
		return false // the loop finds out more
	}
	if err != nil {
		return true
	}
	if st.Starved {
		inst.starved.Store(true)
	}
	served := 0
	for _, c := range pending {
		if slices.Contains(st.Attached, c.att.ID) {
			served++
		} else {
			dr.doubt(inst, c, st.Dead)
		}
	}
	return served > 0
}

// doubt does something about a client of which the driver says that it broke the rules. A driver that is out of its mind says so too, and but for the
// index nobody else can tell. So a successor is asked, but not again and again for the same client: what it says as well is taken for true.
func (dr *driver) doubt(inst *driverInstance, c *client, said []string) {
	c.mu.Lock()
	doubtful := time.Since(c.doubted) >= blamePause && !c.overruns()
	if doubtful {
		c.doubted = time.Now()
	} else {
		c.dead = true
	}
	c.mu.Unlock()
	if doubtful {
		inst.declareLiar(fmt.Sprintf("it says that client %s broke the rules of its ring, which its successor is to confirm: %s", c.att.Client, strings.Join(said, "; ")))
		return
	}
	dr.d.log.Warn("client broke the rules of its ring", "driver", dr.name(), "client", c.att.Client, "disk", c.att.Disk, "driver said", said)
	if c.refuse != nil {
		dr.d.background.Go(func() { c.refuse(errors.New("the client broke the rules of its ring and is no longer served")) })
	}
}

// overruns reports whether the client has made more available than a queue of it holds.
func (c *client) overruns() bool {
	for i, q := range c.att.Queues {
		if avail, used, ok := c.indices(i); ok && avail-used > q.Size {
			return true
		}
	}
	return false
}
