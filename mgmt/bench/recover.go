package main

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/bench/load"
)

// hows are the ways to crash a driver VM.
var hows = []string{"kill", "fault", "hang"}

var recoverNames = []string{"recover_kill_ms", "recover_fault_ms", "recover_hang_ms"}

// recovery measures how long a client that has requests outstanding all the time gets no completion when its driver VM
// is crashed: the longest pause that it sees. Every read is compared with what was written.
func recovery(b *bench) ([]Result, error) {
	path := filepath.Join(b.dir, "recover.img")
	if err := makeDisk(path); err != nil {
		return nil, err
	}
	socket, err := b.startDriver("crash", path)
	if err != nil {
		return nil, err
	}
	defer b.removeDriver("crash")
	t, err := b.dial("driver VM", socket)
	if err != nil {
		return nil, err
	}
	defer t.client.Close()
	var results []Result
	for i, how := range hows {
		name := recoverNames[i]
		if !b.wanted(name) {
			continue
		}
		var stalls []float64
		for n := range b.rounds(5, 21) {
			b.progress("%s: run %d", name, n+1)
			d, err := b.crashUnder("crash", how, func(stop *atomic.Bool, crashed *atomic.Int64) (time.Duration, error) {
				r, err := t.client.Run(load.Job{Random: true, Block: 4 << 10, Depth: 8, Seed: uint64(n), Stop: stop, From: crashed, Check: true})
				return r.Stall, err
			})
			if err != nil {
				return results, fmt.Errorf("%s: %w", name, err)
			}
			stalls = append(stalls, float64(d.Microseconds())/1000)
		}
		r := newResult(name, "ms", less, stalls, "", nil)
		r.bar.most = 100
		if how == "hang" {
			r.bar.most += float64(heartbeat.Milliseconds())
		}
		r.note, err = b.phases("crash", how)
		if err != nil {
			return results, err
		}
		results = append(results, r)
	}
	return results, nil
}

const (
	// Before a crash and after it the load runs this long.
	loadBefore = 150 * time.Millisecond
	loadAfter  = 100 * time.Millisecond
	// A driver that has served for a while has a spare. It is given this long to appear and to boot.
	spareLimit = 5 * time.Second
)

// never is a time after every other, in Unix nanoseconds.
const never = 1<<63 - 1

// crashUnder crashes a driver VM under a load, and returns the longest pause that the load has found since then.
func (b *bench) crashUnder(driver, how string, load func(stop *atomic.Bool, crashed *atomic.Int64) (stall time.Duration, err error)) (time.Duration, error) {
	v, err := b.awaitSpare(driver)
	if err != nil {
		return 0, err
	}
	var stop atomic.Bool
	var crashed atomic.Int64
	crashed.Store(never)
	injected := make(chan error, 1)
	go func() {
		defer stop.Store(true)
		time.Sleep(loadBefore)
		crashed.Store(time.Now().UnixNano())
		_, err := b.daemon.CrashDriver(b.ctx, v.Name, how)
		for err == nil {
			time.Sleep(20 * time.Millisecond)
			var now api.Driver
			now, err = b.daemon.Driver(b.ctx, v.Name)
			if err == nil && now.Generation > v.Generation && now.State == api.Ready {
				break
			}
		}
		time.Sleep(loadAfter)
		injected <- err
	}()
	stall, err := load(&stop, &crashed)
	stop.Store(true)
	if ierr := <-injected; err == nil {
		err = ierr
	}
	if err == nil && stall == 0 {
		err = errors.New("the load ended before the crash")
	}
	return stall, err
}

// awaitSpare returns when the driver serves and has its next instance in reserve, if it is going to.
func (b *bench) awaitSpare(driver string) (v api.Driver, err error) {
	for deadline := time.Now().Add(spareLimit); ; time.Sleep(20 * time.Millisecond) {
		v, err = b.daemon.Driver(b.ctx, driver)
		if err != nil {
			return v, err
		}
		if v.State == api.Ready && v.SparesUp > 0 {
			return v, nil
		}
		if v.State == api.Ready && v.Spares != nil && *v.Spares == 0 {
			return v, nil
		}
		if time.Now().After(deadline) {
			if v.State != api.Ready {
				return v, fmt.Errorf("the driver is %s: %s", v.State, v.Message)
			}
			b.progress("the driver has no spare")
			return v, nil
		}
	}
}

// phases sums up graild's records of the crashes of one kind: medians of the steps, in milliseconds.
func (b *bench) phases(driver, how string) (string, error) {
	list, err := b.daemon.Crashes(b.ctx, driver)
	if err != nil {
		return "", err
	}
	list = slices.DeleteFunc(list, func(c api.Crash) bool { return c.Injected != how })
	return "graild's records, ms: " + stepsOf(list), nil
}

// slowest sums up graild's records of that part of a driver's recoveries that took the longest.
func (b *bench) slowest(driver string, part float64) (string, error) {
	list, err := b.daemon.Crashes(b.ctx, driver)
	if err != nil {
		return "", err
	}
	list = slices.DeleteFunc(list, func(c api.Crash) bool { return c.First.IsZero() || c.Injected == "" })
	slices.SortFunc(list, func(x, y api.Crash) int {
		return cmp.Compare(y.First.Sub(y.Crashed), x.First.Sub(x.Crashed))
	})
	list = list[:min(int(math.Ceil(float64(len(list))*part)), len(list))]
	return fmt.Sprintf("the slowest %d by graild's records, ms: %s", len(list), stepsOf(list)), nil
}

// recoverySteps are the parts of a recovery.
var recoverySteps = []struct {
	name     string
	from, to func(*api.Crash) time.Time
}{
	{"detected", func(c *api.Crash) time.Time { return c.Crashed }, func(c *api.Crash) time.Time { return c.Detected }},
	{"stopped", func(c *api.Crash) time.Time { return c.Detected }, func(c *api.Crash) time.Time { return c.Stopped }},
	{"launched", func(c *api.Crash) time.Time { return c.Stopped }, func(c *api.Crash) time.Time { return c.Launched }},
	{"ready", func(c *api.Crash) time.Time { return c.Launched }, func(c *api.Crash) time.Time { return c.Ready }},
	{"attached", func(c *api.Crash) time.Time { return c.Launched }, func(c *api.Crash) time.Time { return c.Attached }},
	{"first request", func(c *api.Crash) time.Time { return c.Attached }, func(c *api.Crash) time.Time { return c.First }},
	{"all", func(c *api.Crash) time.Time { return c.Crashed }, func(c *api.Crash) time.Time { return c.First }},
}

// stepsOf returns the median and the longest of each step of the recoveries, in milliseconds.
func stepsOf(list []api.Crash) string {
	var words []string
	for _, s := range recoverySteps {
		var ms []float64
		for i := range list {
			if from, to := s.from(&list[i]), s.to(&list[i]); !from.IsZero() && !to.IsZero() {
				ms = append(ms, float64(to.Sub(from).Microseconds())/1000)
			}
		}
		if len(ms) > 0 {
			words = append(words, fmt.Sprintf("%s %.1f (at most %.1f)", s.name, median(ms), slices.Max(ms)))
		}
	}
	return strings.Join(words, ", ")
}
