package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// errRefused is wrapped by what says that a fault was not brought about: there is nothing to judge.
var errRefused = errors.New("not done")

// whileDown has f asked again while there is no graild.
func (r *rig) whileDown(ctx context.Context, f func() error) error {
	for {
		err := f()
		if !api.Down(err) || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(watchPause):
		}
	}
}

// look describes all drivers, also when graild is just starting. It asks no VM: that would take longer.
func (r *rig) look(ctx context.Context) (map[string]api.Driver, error) {
	var list []api.Driver
	err := r.whileDown(ctx, func() (err error) {
		list, err = r.api.Drivers(ctx)
		return err
	})
	drivers := map[string]api.Driver{}
	for _, d := range list {
		drivers[d.Name] = d
	}
	return drivers, err
}

// harm brings a fault about, and says what was done. later collects what goes on beyond that and has to be waited for. Errors: errRefused.
func (r *rig) harm(ctx context.Context, k *kind, target string, f *fault, later *later) (string, error) {
	switch k.way {
	case crash:
		if err := r.ready(ctx, target); err != nil {
			return "", err
		}
		if _, err := r.api.CrashDriver(ctx, target, k.name); err != nil && !api.Down(err) {
			return "", fmt.Errorf("%w: %w", errRefused, err)
		}
		return "crashed on request by " + k.name, nil
	case inject:
		if err := r.ready(ctx, target); err != nil {
			return "", err
		}
		done, err := r.api.InjectDriver(ctx, target, api.Inject{Kind: k.name, Seed: f.arg, Set: f.set})
		return injectedWhat(k, done, err)
	case injectClient:
		if err := r.ready(ctx, target); err != nil {
			return "", err
		}
		v := r.victims[target]
		done, err := r.api.InjectDriver(ctx, target, api.Inject{Kind: k.name, Seed: f.arg, Set: map[string]string{"client": v.name}})
		if err == nil {
			later.broken = append(later.broken, v)
		}
		return injectedWhat(k, done, err)
	case killVMM:
		d, err := r.look(ctx)
		if err != nil {
			return "", err
		}
		return r.kill(fmt.Sprintf("driver:%s:", target), func(pid int) bool { return pid == d[target].PID })
	case killSpare:
		serving, err := r.awaitSpare(ctx, target)
		if err != nil {
			return "", err
		}
		return r.kill(fmt.Sprintf("driver:%s:", target), func(pid int) bool { return pid != serving })
	case killClient:
		v := r.victims[target]
		what, err := r.kill(fmt.Sprintf("vm:%s:", v.name), func(int) bool { return true })
		if err == nil {
			later.killed = append(later.killed, v)
		}
		return what, err
	case killGraild:
		return r.killGraild(ctx, f.pause)
	case outage:
		return r.outage(ctx, target)
	case upgrade:
		later.do(func() error {
			_, err := r.api.UpgradeDriver(ctx, target, api.UpgradeDriver{Installed: true})
			if err != nil {
				err = fmt.Errorf("the upgrade: %w", err)
			}
			return err
		})
		return "upgraded to the installed program", nil
	}
	panic("a kind of fault without a way: " + k.name)
}

// An outage, and when clients get errors in one.
const (
	outageTime = 700 * time.Millisecond
	failAfter  = 200 * time.Millisecond
	killGap    = 5 * time.Millisecond
)

// outage gives the driver the policy to fail requests soon, and kills all that comes to serve them for a while.
func (r *rig) outage(ctx context.Context, target string) (string, error) {
	set := func(s api.SetDriver) error {
		return r.whileDown(ctx, func() error {
			_, err := r.api.SetDriver(ctx, target, s)
			return err
		})
	}
	if err := set(api.SetDriver{Policy: new(api.PolicyFail), FailAfterMs: new(int(failAfter.Milliseconds()))}); err != nil {
		return "", err
	}
	killed := 0
	for until := time.Now().Add(outageTime); time.Now().Before(until) && ctx.Err() == nil; wait(ctx, killGap) {
		for _, p := range r.processes(fmt.Sprintf("driver:%s:", target)) {
			if err := p.Kill(); err == nil {
				killed++
			}
			p.Close()
		}
	}
	return fmt.Sprintf("killed %d instances one after the other, with policy fail after %v", killed, failAfter), set(api.SetDriver{Policy: new(api.PolicyStall)})
}

// injectedWhat makes an outcome of an answer to an injection.
func injectedWhat(k *kind, done api.Injected, err error) (string, error) {
	switch {
	case err == nil:
		return done.What, nil
	case api.Down(err):
		return k.name + ", when graild was just killed", nil
	}
	return "", fmt.Errorf("%w: %w", errRefused, err)
}

// later is what a fault has begun that has to end before the verdict.
type later struct {
	killed []*client // to be started again
	broken []*client // that may get what they asked for: to be killed and started again
	ends   []chan error
}

func (l *later) do(f func() error) {
	end := make(chan error, 1)
	l.ends = append(l.ends, end)
	go func() { end <- f() }()
}

// ready returns when a driver serves: one that does not cannot be crashed on request.
func (r *rig) ready(ctx context.Context, driver string) error {
	limit := time.Now().Add(serveLimit)
	for {
		list, err := r.look(ctx)
		if err != nil {
			return err
		}
		d := list[driver]
		if d.State == api.Ready {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("driver %s is %s, %s", driver, d.State, d.Message)
		}
		select {
		case <-time.After(watchPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// spareLimit is how long a spare is waited for.
const spareLimit = 3 * time.Second

// awaitSpare returns when a driver has a spare, and the process that serves. Errors: errRefused, it has none.
func (r *rig) awaitSpare(ctx context.Context, driver string) (pid int, err error) {
	for limit := time.Now().Add(spareLimit); ; {
		list, err := r.look(ctx)
		if err != nil {
			return 0, err
		}
		if list[driver].Spare {
			return list[driver].PID, nil
		}
		if time.Now().After(limit) {
			return 0, fmt.Errorf("%w: driver %s has no spare", errRefused, driver)
		}
		select {
		case <-time.After(watchPause):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// kill kills the rig's processes of that role and name that match.
func (r *rig) kill(of string, is func(pid int) bool) (string, error) {
	var pids []string
	for _, p := range r.processes(of) {
		if is(p.PID) && len(pids) == 0 {
			if err := p.Kill(); err == nil {
				pids = append(pids, fmt.Sprint(p.PID))
			}
		}
		p.Close()
	}
	if len(pids) == 0 {
		return "", fmt.Errorf("%w: there is no such process, %s", errRefused, of)
	}
	return fmt.Sprintf("killed process %s, %s", strings.Join(pids, ", "), strings.TrimSuffix(of, ":")), nil
}

// killGraild kills graild, and starts another one after a while.
func (r *rig) killGraild(ctx context.Context, pause time.Duration) (string, error) {
	r.killing.Lock()
	defer r.killing.Unlock()
	p, err := hv.FindProcess(r.graild, func(args []string) bool { return strings.HasSuffix(args[0], "graild") })
	if err != nil {
		return "", fmt.Errorf("graild, process %d: %w", r.graild, err)
	}
	err = p.Signal(unix.SIGKILL)
	if err == nil {
		err = p.Wait(serveLimit)
	}
	p.Close()
	if err != nil {
		return "", err
	}
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
	// Also for an interrupted campaign: what the rig has must be removed through graild.
	start, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveLimit)
	defer cancel()
	what := fmt.Sprintf("killed graild, process %d, and started it again after %v", r.graild, pause.Round(time.Microsecond))
	if err := r.startGraild(start); err != nil {
		return what, fmt.Errorf("graild does not start again: %w", err)
	}
	return what, nil
}
