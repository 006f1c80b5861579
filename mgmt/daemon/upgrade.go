package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/store"
)

// Times of an upgrade.
const (
	upgradeDeadline = 20 * time.Second // for the new program to be ready and to test itself, unless asked for another
	probation       = 30 * time.Second // after which an upgrade is no longer rolled back
)

// upgrade replaces the driver's program: by the one in the file, or by the installed one if that is nil. The new one starts beside the present one,
// has to get ready and to pass its own test by the deadline, and only then takes over, after what is in flight is done. If it fails before that,
// nothing has changed. If it dies of itself soon after, died rolls back.
func (dr *driver) upgrade(ctx context.Context, program *os.File, deadline time.Duration) (api.Upgrade, error) {
	if !dr.upgrading.TryLock() {
		return api.Upgrade{}, api.Errorf(api.Busy, "driver %s is being upgraded already", dr.name())
	}
	defer dr.upgrading.Unlock()
	defer dr.dropPrograms()
	dr.mu.Lock()
	state, from := dr.state, dr.rec.Program
	dr.mu.Unlock()
	if state != api.Ready {
		return api.Upgrade{}, api.Errorf(api.Busy, "driver %s is %s; it can be upgraded when it is ready", dr.name(), state)
	}
	up := api.Upgrade{Driver: dr.name(), From: from}
	if program != nil {
		var err error
		if up.To, err = dr.keepProgram(program); err != nil {
			return up, err
		}
	}
	next, err := dr.try(up.To, deadline)
	if err != nil {
		return up, api.Errorf(api.CannotRun, "the new program is refused, and driver %s serves on with the old one: %v", dr.name(), err)
	}
	dr.mu.Lock()
	if dr.ending {
		dr.mu.Unlock()
		dr.discard(next)
		return up, api.Errorf(api.NotFound, "driver %s was removed", dr.name())
	}
	spares := dr.takeSpares()
	next.booted.Store(true)
	dr.spares = []*driverInstance{next}
	dr.rec.Program = up.To
	dr.rec.Upgrade = &store.Upgrade{From: from, At: time.Now()}
	rec := dr.rec
	dr.mu.Unlock()
	dr.discard(spares...)
	// On disk first: what serves must be known to the next graild.
	if err := dr.d.store.PutDriver(&rec); err != nil {
		return up, err
	}
	begin := time.Now()
	if err := dr.replace(ctx); err != nil {
		return up, err
	}
	up.SwitchMs = float64(time.Since(begin).Microseconds()) / 1000
	dr.mu.Lock()
	runs, why := dr.rec.Runs, dr.lastEnd
	dr.mu.Unlock()
	if runs != up.To {
		return up, api.Errorf(api.CannotRun, "the new program could not take over, and driver %s serves with the old one again: %s", dr.name(), why)
	}
	dr.d.log.Info("driver upgraded", "driver", dr.name(), "from", programName(up.From), "to", programName(up.To), "ms", up.SwitchMs)
	return up, nil
}

// try starts an instance of a program beside the present one and has it test itself. Errors: why it is no good; it is gone then.
func (dr *driver) try(digest string, deadline time.Duration) (*driverInstance, error) {
	if err := dr.reopen(); err != nil {
		return nil, err
	}
	next, err := dr.d.launchDriver(dr, dr.nextLaunch(), digest)
	if err != nil {
		return nil, err
	}
	if _, err = next.waitReady(deadline); err == nil {
		err = next.test()
	}
	if err == nil {
		return next, nil
	}
	next.askEnd(lastWord)
	next.end()
	if r := readReport(next.report, dr.name()); errors.Is(err, errEnded) || r.Cause == hv.CauseExit || r.Cause == hv.CauseSignal {
		err = fmt.Errorf("it %s", describe(r))
		if n := len(r.Console); n > 0 {
			err = fmt.Errorf("%w; it said: %s", err, r.Console[n-1])
		}
	}
	dr.discard(next)
	return nil, err
}

// test asks the driver to test itself.
func (i *driverInstance) test() error {
	wrong, err := i.ask(abi.Message{Type: abi.MsgTest})
	switch {
	case err != nil && (i.gone() || errors.Is(err, hv.ErrClosed)):
		i.awaitEnd()
		return errEnded
	case err != nil:
		return fmt.Errorf("its test of itself: %w", err)
	case wrong != "":
		return fmt.Errorf("its test of itself failed: %.400q", wrong)
	}
	return nil
}

// rollBack returns to the program before the last upgrade, if inst runs the new one and died of itself soon after it had taken over. It reports
// whether it did. The caller holds dr.mu.
func (dr *driver) rollBack(inst *driverInstance, injected bool) bool {
	u := dr.rec.Upgrade
	if u == nil || injected || inst.program != dr.rec.Program || inst.program == u.From || time.Since(u.At) > probation {
		return false
	}
	dr.d.log.Warn("upgrade rolled back", "driver", dr.name(), "to", programName(u.From))
	dr.rec.Program, dr.rec.Upgrade = u.From, nil
	dr.backoff.Reset()
	return true
}

// programName names a program for people.
func programName(digest string) string {
	if digest == "" {
		return "installed"
	}
	return "sha256:" + digest[:min(len(digest), 12)]
}

func (d *Daemon) upgradeDriver(r *http.Request) (any, error) {
	var req api.UpgradeDriver
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	dr, err := d.driver(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	var program *os.File
	if !req.Installed {
		files := d.handover.claim(req.Ticket)
		defer closeFiles(files)
		if program = files[api.RoleProgram]; program == nil {
			return nil, api.Errorf(api.Invalid, "ticket %q stands for no program", req.Ticket)
		}
	}
	deadline := upgradeDeadline
	if req.DeadlineMs > 0 {
		deadline = time.Duration(req.DeadlineMs) * time.Millisecond
	}
	// A client that goes away does not leave an upgrade half done.
	return dr.upgrade(context.WithoutCancel(r.Context()), program, deadline)
}
