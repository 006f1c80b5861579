package sandbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/grailos/grail/mgmt/api"
)

// Hows are the ways in which a driver can be crashed.
var Hows = []string{"kill", "fault", "hang"}

// How often graild is asked whether a driver has recovered, and after which time the answer is no.
const (
	askPause        = 5 * time.Millisecond
	recoveryTimeout = 2 * time.Minute
)

// Crash crashes a driver and returns the record of that crash once the driver's next instance has completed a request.
// A driver whose clients want nothing cannot hang and has no recovery to wait for. Errors: it did not recover.
func (s *Sandbox) Crash(ctx context.Context, driver, how string) (api.Crash, error) {
	before, err := s.lastCrash(ctx, driver)
	if err != nil {
		return api.Crash{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, recoveryTimeout)
	defer cancel()
	if _, err := s.Do(ctx, "driver", "crash", driver, "--how", how); err != nil {
		return api.Crash{}, err
	}
	for {
		c, err := s.lastCrash(ctx, driver)
		switch {
		case ctx.Err() == context.DeadlineExceeded:
			return c, fmt.Errorf("driver %s did not recover from --how %s within %v", driver, how, recoveryTimeout)
		case err != nil:
			return c, err
		case c.ID > before.ID && c.RecoverMs > 0:
			return c, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(askPause):
		}
	}
}

// lastCrash returns the newest crash record of a driver, those of its spares aside; the zero record if there is none.
func (s *Sandbox) lastCrash(ctx context.Context, driver string) (c api.Crash, err error) {
	var list []api.Crash
	err = s.Ask(ctx, &list, "driver", "crashes", driver)
	for i := range list {
		if !list[i].OfSpare {
			c = list[i]
		}
	}
	return c, err
}

// Serving waits until a driver that has crashed so many times in all serves all of its clients again. Errors: it does
// not.
func (s *Sandbox) Serving(ctx context.Context, driver string, crashes int) error {
	ctx, cancel := context.WithTimeout(ctx, recoveryTimeout)
	defer cancel()
	var last api.Driver
	for {
		d, err := s.Driver(ctx, driver)
		if err == nil {
			last = d
		}
		switch {
		case ctx.Err() == context.DeadlineExceeded:
			return fmt.Errorf("driver %s has not served again within %v: it is %s after %d crashes", driver, recoveryTimeout, last.State, last.Crashes)
		case err != nil:
			return err
		case d.Crashes >= crashes && d.State == api.Ready && !slices.ContainsFunc(d.Clients, func(b api.Binding) bool { return !b.Attached }):
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(askPause):
		}
	}
}
