package daemon

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
)

// When spares are started.
const (
	// spareDelay is how long a driver must have served before: neither shall the two compete for the processor while clients wait, nor shall a
	// driver that dies at once cost two starts each time.
	spareDelay = 300 * time.Millisecond
	// sparePause is the shortest time between the end of a spare, or a failure to make one, and the next attempt.
	sparePause = time.Second
)

// keepSpares keeps as many booted instances in reserve as the driver is to have, while it serves. A spare has the same devices as the driver, but no
// clients, and does nothing until it is attached to them. It returns when the driver is to stop, or graild ends.
func (dr *driver) keepSpares() {
	for {
		dr.mu.Lock()
		changed := dr.changed
		missing := *dr.rec.Config.Spares - len(dr.spares)
		surplus := slices.Clone(dr.spares[:max(min(-missing, len(dr.spares)), 0)])
		dr.spares = slices.Delete(dr.spares, 0, len(surplus))
		var due <-chan time.Time
		if missing > 0 && dr.state == api.Ready && !dr.planned {
			when := dr.readySince.Add(spareDelay)
			if when.Before(dr.spareNext) {
				when = dr.spareNext
			}
			due = time.After(time.Until(when))
		}
		if missing <= 0 {
			dr.spareNote = ""
		}
		dr.mu.Unlock()
		for _, s := range surplus {
			dr.discard(s)
		}
		select {
		case <-due:
			dr.addSpare()
		case <-changed:
		case <-dr.stop:
			return
		case <-dr.d.closing:
			return
		}
	}
}

// addSpare starts a spare.
func (dr *driver) addSpare() {
	dr.mu.Lock()
	program := dr.rec.Program
	dr.mu.Unlock()
	launched := time.Now()
	err := dr.d.roomFor(dr.rec.Config.MemoryBytes)
	var spare *driverInstance
	if err == nil {
		spare, err = dr.d.launchDriver(dr, dr.nextLaunch(), program)
	}
	if err != nil {
		dr.noSpare(err.Error(), launched)
		return
	}
	dr.mu.Lock()
	keep := !dr.planned && !dr.ending && program == dr.rec.Program && len(dr.spares) < *dr.rec.Config.Spares
	if keep {
		dr.spares = append(dr.spares, spare)
	}
	dr.mu.Unlock()
	if !keep {
		dr.discard(spare)
		return
	}
	go dr.watchSpare(spare)
}

// roomFor refuses what the host has no memory for.
func (d *Daemon) roomFor(bytes uint64) error {
	if left, known := d.memoryLeft(); known && left < bytes {
		return fmt.Errorf("it may need %s of memory, and the host has %s left", size.Format(bytes), size.Format(left>>20<<20))
	}
	return nil
}

// noSpare says why there is no spare, and when it is tried again.
func (dr *driver) noSpare(why string, launched time.Time) {
	dr.mu.Lock()
	wait := max(dr.spareBackoff.Died(time.Since(launched), false), sparePause)
	dr.spareNext = time.Now().Add(wait)
	said := dr.spareNote == why
	dr.spareNote = why
	dr.mu.Unlock()
	if !said {
		dr.d.log.Warn("no spare", "driver", dr.name(), "why", why, "next", wait)
	}
}

// watchSpare takes note when a spare has booted, and deals with its death. It returns when the spare has ended, or is the driver.
func (dr *driver) watchSpare(spare *driverInstance) {
	if _, err := spare.waitReady(startTimeout); err == nil {
		// The first use of each page of the program's code costs a fault: not when clients wait. What a disk makes of it says nothing about the spare.
		_ = spare.test()
		spare.booted.Store(true)
		dr.mu.Lock()
		if slices.Contains(dr.spares, spare) {
			dr.spareNote = ""
			dr.set(dr.state, dr.message)
		}
		dr.mu.Unlock()
	} else if dr.giveUp(spare) {
		spare.end()
		dr.spareDied(spare, err)
		return
	}
	select {
	case <-spare.ended:
		if dr.giveUp(spare) {
			dr.spareDied(spare, errEnded)
		}
	case <-spare.taken:
	case <-dr.d.closing:
	}
}

// giveUp takes a spare out of the reserve, and reports whether it was there.
func (dr *driver) giveUp(spare *driverInstance) bool {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	i := slices.Index(dr.spares, spare)
	if i >= 0 {
		dr.spares = slices.Delete(dr.spares, i, i+1)
	}
	return i >= 0 && !dr.ending
}

// spareDied records the death of a spare that was not wanted. Another one is made, after a pause.
func (dr *driver) spareDied(spare *driverInstance, err error) {
	r := readReport(spare.report, dr.name())
	c := api.Crash{Driver: dr.name(), OfSpare: true, Launch: spare.generation, Program: spare.program, Cause: r.Cause, Message: describe(r),
		Crashed: r.Ended, Detected: time.Now(), Stopped: time.Now(), Report: r}
	if err != errEnded {
		c.Message = err.Error()
	}
	dr.mu.Lock()
	c.Generation = dr.rec.Generation
	dr.rec.SpareCrashes++
	wait := max(dr.spareBackoff.Died(time.Since(spare.launched), false), sparePause)
	dr.spareNext = time.Now().Add(wait)
	dr.spareNote = "the last one died: " + c.Message
	dr.d.store.PutDriverLater(&dr.rec)
	dr.set(dr.state, dr.message)
	dr.mu.Unlock()
	dr.d.log.Warn("spare died", "driver", dr.name(), "cause", c.Cause, "why", c.Message, "next", wait)
	spare.close()
	spare.closePages()
	c.ID, _ = dr.d.store.NextID()
	dr.d.newRecovery(c, spare.report).complete()
}

// takeSpare returns a spare, which may still be booting when no other is there, or nil.
func (dr *driver) takeSpare() *driverInstance {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	best := -1
	for i, s := range dr.spares {
		if !s.gone() && (best < 0 || s.booted.Load() && !dr.spares[best].booted.Load()) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	spare := dr.spares[best]
	dr.spares = slices.Delete(dr.spares, best, best+1)
	close(spare.taken)
	return spare
}

// takeSpares empties the reserve, for the caller to discard. The caller holds dr.mu.
func (dr *driver) takeSpares() []*driverInstance {
	spares := dr.spares
	dr.spares = nil
	return spares
}

// sparesUp returns how many spares can take over at once. The caller holds dr.mu.
func (dr *driver) sparesUp() (n int) {
	for _, s := range dr.spares {
		if s.booted.Load() && !s.gone() {
			n++
		}
	}
	return n
}

// endSpares ends the spares for good when the driver's loop ends. When graild ends, the next one does that.
func (dr *driver) endSpares() {
	dr.mu.Lock()
	dr.ending = true
	spares := dr.takeSpares()
	dr.mu.Unlock()
	select {
	case <-dr.d.closing:
	default:
		dr.discard(spares...)
	}
}

// discard ends spares that are not needed.
func (dr *driver) discard(spares ...*driverInstance) {
	for _, s := range spares {
		s.end()
		s.close()
		s.closePages()
		_ = os.Remove(s.report)
	}
}

// nextLaunch returns the number of the driver's next process.
func (dr *driver) nextLaunch() int {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	dr.rec.Launch++
	return dr.rec.Launch
}
