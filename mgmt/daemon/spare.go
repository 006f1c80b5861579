package daemon

import (
	"os"
	"time"
)

// spareDelay is how long a driver must have served before a spare is started: neither shall the two compete for the
// processor while clients wait, nor shall a driver that dies at once cost two starts each time.
const spareDelay = 300 * time.Millisecond

// prepareSpare starts the next instance of a driver ahead of time, when inst has served for a while. A spare has the
// same devices, but no clients, and does nothing until it is attached to them.
func (dr *driver) prepareSpare(inst *driverInstance) {
	dr.mu.Lock()
	wanted := !dr.rec.Config.NoSpare && dr.spare == nil
	dr.mu.Unlock()
	if !wanted {
		return
	}
	dr.d.background.Go(func() {
		select {
		case <-time.After(spareDelay):
		case <-inst.ended:
			return
		case <-dr.stop:
			return
		case <-dr.d.closing:
			return
		}
		dr.mu.Lock()
		program := dr.rec.Program
		dr.mu.Unlock()
		spare, err := dr.d.launchDriver(dr, dr.nextLaunch(), program)
		if err != nil {
			dr.d.log.Warn("no spare", "driver", dr.name(), "error", err)
			return
		}
		dr.mu.Lock()
		keep := dr.spare == nil && !dr.planned && !dr.ending && program == dr.rec.Program
		if keep {
			dr.spare = spare
		}
		dr.mu.Unlock()
		if !keep {
			dr.discard(spare)
		}
	})
}

// takeSpare returns the spare, which may still be booting, or nil.
func (dr *driver) takeSpare() *driverInstance {
	dr.mu.Lock()
	spare := dr.spare
	dr.spare = nil
	dr.mu.Unlock()
	if spare != nil && spare.gone() {
		dr.d.log.Warn("the spare had died", "driver", dr.name(), "why", describe(readReport(spare.report, dr.name())))
		dr.discard(spare)
		return nil
	}
	return spare
}

// endSpare ends the spare for good when the driver's loop ends. When graild ends, the next one does that.
func (dr *driver) endSpare() {
	dr.mu.Lock()
	dr.ending = true
	spare := dr.spare
	dr.spare = nil
	dr.mu.Unlock()
	select {
	case <-dr.d.closing:
	default:
		dr.discard(spare)
	}
}

// discard ends a spare that is not needed.
func (dr *driver) discard(spare *driverInstance) {
	if spare == nil {
		return
	}
	spare.end()
	spare.close()
	spare.closePages()
	_ = os.Remove(spare.report)
}

// nextLaunch returns the number of the driver's next process.
func (dr *driver) nextLaunch() int {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	dr.rec.Launch++
	return dr.rec.Launch
}
