package main

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/bench/load"
)

var spareNames = []string{"recover_spare_p50_ms", "recover_spare_p99_ms"}

// suddenHows are the crashes that are noticed at once; a hang has a number of its own.
var suddenHows = []string{"kill", "fault"}

// spareRecovery measures the stall of a client by many crashes of its driver, each with a booted spare.
func spareRecovery(b *bench) ([]Result, error) {
	stalls, note, err := b.stalls(spareNames[0], "spare", b.rounds(30, 1000))
	if err != nil {
		return nil, err
	}
	p50 := newResult(spareNames[0], "ms", less, stalls, "", nil)
	p50.bar.most, p50.note = 10, note
	p99 := p50
	p99.Name, p99.Value, p99.bar.most = spareNames[1], quantile(stalls, 0.99), 25
	p99.note = fmt.Sprintf("longest %s ms", number(quantile(stalls, 1)))
	return []Result{p50, p99}, nil
}

// coldRecovery measures the same without spares.
func coldRecovery(b *bench) ([]Result, error) {
	const name = "recover_cold_ms"
	stalls, note, err := b.stalls(name, "cold", b.rounds(5, 31), func(c *api.DriverConfig) { c.Spares = new(0) })
	if err != nil {
		return nil, err
	}
	r := newResult(name, "ms", less, stalls, "", nil)
	r.bar.most, r.note = 60, note
	return []Result{r}, nil
}

// stalls crashes a new driver under a load that never pauses, in turn in each of the ways, and returns in milliseconds the longest pause of each crash, and
// where the time went. Every read is compared with what was written.
func (b *bench) stalls(name, driver string, n int, set ...func(*api.DriverConfig)) (ms []float64, note string, err error) {
	path := filepath.Join(b.dir, driver+".img")
	if err := makeDisk(path); err != nil {
		return nil, "", err
	}
	socket, err := b.startDriver(driver, path, set...)
	if err != nil {
		return nil, "", err
	}
	defer b.removeDriver(driver)
	t, err := b.dial("driver VM", socket)
	if err != nil {
		return nil, "", err
	}
	defer t.client.Close()
	for i := range n {
		if i%50 == 0 {
			b.progress("%s: crash %d of %d", name, i+1, n)
		}
		stall, err := b.crashUnder(driver, suddenHows[i%len(suddenHows)], func(stop *atomic.Bool, crashed *atomic.Int64) (time.Duration, error) {
			r, err := t.client.Run(load.Job{Random: true, Block: 4 << 10, Depth: 8, Seed: uint64(i), Stop: stop, From: crashed, Check: true})
			return r.Stall, err
		})
		if err != nil {
			return nil, "", err
		}
		ms = append(ms, float64(stall.Microseconds())/1000)
	}
	for h, how := range suddenHows {
		var of []float64
		for i := h; i < len(ms); i += len(suddenHows) {
			of = append(of, ms[i])
		}
		steps, err := b.phases(driver, how)
		if err != nil {
			return nil, "", err
		}
		note += fmt.Sprintf("%s: median %s, 99th percentile %s; %s\n", how, number(median(of)), number(quantile(of, 0.99)), steps)
	}
	slow, err := b.slowest(driver, 0.01)
	return ms, note + slow, err
}

// killPeriod is the time between two crashes of throughput_killed.
const killPeriod = time.Second

// throughputKilled compares a client's throughput while its driver is killed once a second with the undisturbed one.
func throughputKilled(b *bench) ([]Result, error) {
	const name = "throughput_killed"
	path := filepath.Join(b.dir, "killed.img")
	if err := makeDisk(path); err != nil {
		return nil, err
	}
	socket, err := b.startDriver("killed", path)
	if err != nil {
		return nil, err
	}
	defer b.removeDriver("killed")
	t, err := b.dial("driver VM", socket)
	if err != nil {
		return nil, err
	}
	defer t.client.Close()
	job := load.Job{Random: true, Block: 4 << 10, Depth: 8, Check: true, Time: time.Duration(b.rounds(3, 10)) * killPeriod}
	undisturbed := func() (load.Result, error) { return t.client.Run(job) }
	killed := func() (load.Result, error) {
		done := make(chan struct{})
		failed := make(chan error, 1)
		go func() { failed <- b.killEvery(killPeriod, "killed", done) }()
		r, err := t.client.Run(job)
		close(done)
		if kerr := <-failed; err == nil {
			err = kerr
		}
		return r, err
	}
	a, p, err := inTurn(b, name, b.rounds(5, 9), killed, undisturbed)
	if err != nil {
		return nil, err
	}
	r := newResult(name, "IOPS", more, values(a, load.Result.PerSecond), "the same, undisturbed", values(p, load.Result.PerSecond))
	r.bar.ratio = 0.9
	r.note = "4 KiB random reads, depth 8, each checked; the client keeps one CPU busy"
	return []Result{r}, nil
}

// killEvery kills a driver VM once a period until done is closed; one that is being replaced is left alone.
func (b *bench) killEvery(period time.Duration, driver string, done <-chan struct{}) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-tick.C:
		}
		v, err := b.daemon.Driver(b.ctx, driver)
		if err == nil && v.State == api.Ready {
			_, err = b.daemon.CrashDriver(b.ctx, driver, "kill")
		}
		if err != nil {
			return err
		}
	}
}
