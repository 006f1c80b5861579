package daemon

import (
	"context"
	"net/http"

	"github.com/grailos/grail/mgmt/api"
)

// resume makes a driver that waits after crashes try again at once, with its early deaths forgiven. It returns when the driver serves. Errors: it
// does not wait; it fails again.
func (dr *driver) resume(ctx context.Context) error {
	dr.mu.Lock()
	state, launches := dr.state, dr.rec.Launch
	if state != api.BackOff && state != api.CrashLoop {
		dr.mu.Unlock()
		return api.Errorf(api.Busy, "driver %s is %s; there is nothing to resume", dr.name(), state)
	}
	dr.backoff.Reset()
	dr.mu.Unlock()
	select {
	case dr.hurry <- struct{}{}:
	default:
	}
	failed := ""
	err := dr.waitFor(ctx, func() bool {
		if dr.rec.Launch > launches+1 || dr.state == api.BackOff && dr.rec.Launch > launches {
			failed = dr.message
			if failed == "" {
				failed = dr.lastEnd
			}
		}
		return dr.state == api.Ready || failed != ""
	})
	if err == nil && failed != "" {
		err = api.Errorf(api.CannotRun, "driver %s fails again: %s", dr.name(), failed)
	}
	return err
}

func (d *Daemon) resumeDriver(r *http.Request) (any, error) {
	dr, err := d.driver(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if err := dr.resume(r.Context()); err != nil {
		return nil, err
	}
	return dr.view(), nil
}
