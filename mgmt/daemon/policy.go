package daemon

import (
	"net/http"
	"time"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/reincarnation"
)

// Bounds of how long clients wait before policy fail has their requests fail.
const (
	defaultFailAfter = 30 * time.Second
	minFailAfter     = 100 * time.Millisecond
	maxFailAfter     = time.Hour
)

func ms(d time.Duration) int     { return int(d / time.Millisecond) }
func fromMs(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// defaultPolicy fills in what was left out, or what the store of an earlier graild does not have.
func defaultPolicy(c *api.DriverConfig) {
	if c.HeartbeatMs == 0 && c.Type == typeConsole {
		c.HeartbeatMs = consoleHeartbeatMs
	}
	if c.HeartbeatMs == 0 {
		c.HeartbeatMs = ms(reincarnation.DefaultPeriod)
	}
	if c.DeadlineMs == 0 {
		c.DeadlineMs = ms(reincarnation.DefaultPatience)
	}
	if c.Spares == nil {
		c.Spares = new(1)
		if c.NoSpare {
			c.Spares = new(0)
		}
	}
	c.NoSpare = false
	if c.Policy == "" {
		c.Policy = api.PolicyStall
	}
	if c.Policy == api.PolicyFail && c.FailAfterMs == 0 {
		c.FailAfterMs = ms(defaultFailAfter)
	}
}

// checkPolicy refuses what makes no sense.
func checkPolicy(c *api.DriverConfig) error {
	if p := fromMs(c.HeartbeatMs); p < reincarnation.MinPeriod || p > reincarnation.MaxPeriod {
		return api.Errorf(api.Invalid, "a heartbeat period of %v cannot be kept; give %v to %v", p, reincarnation.MinPeriod, reincarnation.MaxPeriod)
	}
	if p := fromMs(c.DeadlineMs); p < reincarnation.MinPatience || p > reincarnation.MaxPatience {
		return api.Errorf(api.Invalid, "a deadline of %v for requests makes no sense; give %v to %v", p, reincarnation.MinPatience, reincarnation.MaxPatience)
	}
	if n := *c.Spares; n < 0 || n > api.MaxSpares {
		return api.Errorf(api.Invalid, "a driver cannot have %d spares; give 0 to %d", n, api.MaxSpares)
	}
	switch c.Policy {
	case api.PolicyStall:
		if c.FailAfterMs != 0 {
			return api.Errorf(api.Invalid, "policy stall has clients wait for as long as it takes; a time goes with policy fail")
		}
	case api.PolicyFail:
		if c.Type == typeConsole {
			return api.Errorf(api.Invalid, "nobody waits for a console driver; policy fail is for others")
		}
		if p := fromMs(c.FailAfterMs); p < minFailAfter || p > maxFailAfter {
			return api.Errorf(api.Invalid, "policy fail after %v makes no sense; give %v to %v", p, minFailAfter, maxFailAfter)
		}
	default:
		return api.Errorf(api.Invalid, "there is no policy %q; use stall or fail", c.Policy)
	}
	return nil
}

// config returns the driver's configuration, of which the policy may change at any time.
func (dr *driver) config() api.DriverConfig {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	return dr.rec.Config
}

// setPolicy changes the policy and returns when that is on disk.
func (dr *driver) setPolicy(s api.SetDriver) error {
	dr.mu.Lock()
	c := dr.rec.Config
	put := func(to *int, v *int) {
		if v != nil {
			*to = *v
		}
	}
	put(&c.HeartbeatMs, s.HeartbeatMs)
	put(&c.DeadlineMs, s.DeadlineMs)
	if s.Spares != nil {
		c.Spares = new(*s.Spares)
	}
	if s.Policy != nil {
		c.Policy, c.FailAfterMs = *s.Policy, 0
	}
	put(&c.FailAfterMs, s.FailAfterMs)
	if c.Policy == api.PolicyFail && c.FailAfterMs == 0 && s.FailAfterMs == nil {
		c.FailAfterMs = ms(defaultFailAfter)
	}
	if err := checkPolicy(&c); err != nil {
		dr.mu.Unlock()
		return err
	}
	if err := dr.resize(&c); err != nil {
		dr.mu.Unlock()
		return err
	}
	now := &dr.rec.Config // whose other fields are read without the lock
	now.HeartbeatMs, now.DeadlineMs, now.Spares, now.Policy, now.FailAfterMs = c.HeartbeatMs, c.DeadlineMs, c.Spares, c.Policy, c.FailAfterMs
	dr.spareBackoff.Reset()
	dr.spareNext = time.Time{}
	close(dr.tuned)
	dr.tuned = make(chan struct{})
	dr.d.store.PutDriverLater(&dr.rec)
	dr.set(dr.state, dr.message)
	dr.mu.Unlock()
	return dr.d.store.Sync()
}

// tuning returns the configuration, and a channel that is closed when it has changed.
func (dr *driver) tuning() (api.DriverConfig, <-chan struct{}) {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	return dr.rec.Config, dr.tuned
}

func (d *Daemon) setDriver(r *http.Request) (any, error) {
	var req api.SetDriver
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	dr, err := d.driver(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if err := dr.setPolicy(req); err != nil {
		return nil, err
	}
	return dr.view(), nil
}
