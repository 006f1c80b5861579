package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/engine"
)

// faults is the campaign of faults of every kind.
type faults struct {
	*campaign
	count   int           // how many faults
	limit   time.Duration // how long, at most
	rigs    int           // at a time
	among   []kind
	linux   bool   // also in a rig with a Linux VM
	quick   bool   // as many as there is time for
	results string // file, or empty
	keep    string // folder for evidence
	only    *uint64

	report *report
	next   chan int // numbers of the faults
}

// A rig is made anew after so many faults, also when nothing is wrong: its last look is a part of the campaign.
const rigLife = 400

// maxBroken is how many rigs in a row may fail to be built.
const maxBroken = 3

// run is the whole campaign. Nothing of it is left afterwards but the results. Errors: something was LOST; the campaign could not be carried
// out, or not to its end.
func (c *faults) run(ctx context.Context) (err error) {
	if c.dir, err = os.MkdirTemp("", "grail-campaign-"); err != nil {
		return err
	}
	defer os.RemoveAll(c.dir)
	if c.keep, err = filepath.Abs(c.keep); err != nil {
		return err
	}
	engines, err := c.engines()
	if err != nil {
		return err
	}
	c.report = newReport(c.out)
	switch {
	case c.only != nil:
		f := plan(*c.only, c.among)
		if f.kind == nil {
			return fmt.Errorf("seed %d means none of these kinds of fault", *c.only)
		}
		engines, c.rigs, c.count = []hv.Engine{f.engine}, 1, 1
		if c.linux = *c.only&onLinux != 0; c.linux {
			c.rigs = 0
		}
		c.say("fault %d: %s of %s, engine %s", *c.only, f.name(), f.target, f.engine)
	case c.quick:
		c.count = maxQuick
		c.say("faults for %v, %d at a time, seed %d (-seed repeats it, -one SEED one fault)", c.limit, c.rigs, c.seed)
	default:
		c.say("%d faults in at most %v, %d at a time, seed %d (-seed repeats it, -one SEED one fault)", c.count, c.limit, c.rigs, c.seed)
	}
	begin := time.Now()
	work, stop := context.WithTimeout(ctx, c.limit)
	defer stop()
	c.next = make(chan int)
	go func() {
		defer close(c.next)
		for n := range c.count {
			select {
			case c.next <- n + 1:
			case <-work.Done():
				return
			}
		}
	}()
	progress := make(chan struct{})
	go func() {
		defer close(progress)
		c.report.live(work, begin)
	}()
	var wg sync.WaitGroup
	broken := make([]error, c.rigs+1)
	for i := range c.rigs {
		wg.Go(func() {
			e := engines[(i+1)%len(engines)] // of an odd number of rigs, the one more is of the cheaper engine
			broken[i] = c.lane(work, ctx, i, e, false, func(name string) (bench, error) { return c.newRig(work, name, e) })
			if broken[i] != nil {
				stop()
			}
		})
	}
	if why := c.noLinux(); c.linux && why != nil {
		c.say("no rig with a Linux VM: %v", why)
	} else if c.linux {
		wg.Go(func() {
			e := engines[0]
			broken[c.rigs] = c.lane(work, ctx, c.rigs, e, true, func(name string) (bench, error) { return c.newLinuxRig(work, name, e) })
		})
	}
	wg.Wait()
	interrupted := ctx.Err() != nil
	stop()
	<-progress
	c.report.table(time.Since(begin))
	if c.results != "" {
		err = c.write()
	}
	done, lost := c.report.done(), c.report.lost()
	switch {
	case lost > 0:
		err = errors.Join(err, fmt.Errorf("%d of %d faults LOST; evidence is in %s", lost, done, c.keep))
	case !interrupted && !c.quick && done < c.count && c.only == nil:
		err = errors.Join(err, fmt.Errorf("only %d of %d faults in %v, 0 LOST", done, c.count, c.limit))
	case interrupted:
		err = errors.Join(err, fmt.Errorf("interrupted after %d faults, 0 LOST", done))
	}
	return errors.Join(append(broken, err)...)
}

// engines returns the engines that work here.
func (c *faults) engines() ([]hv.Engine, error) {
	list := []hv.Engine{hv.EngineKVM, hv.EngineProcess}
	f, err := engine.KVM()
	if err == nil {
		f.Close()
	}
	switch {
	case c.engine == string(hv.EngineProcess):
		return list[1:], nil
	case c.engine == string(hv.EngineKVM):
		return list[:1], err
	case err != nil:
		c.say("engine process only: %v", err)
		return list[1:], nil
	}
	return list, nil
}

// bench is where faults happen, one after the other.
type bench interface {
	try(ctx context.Context, f *fault) (*judge, error)
	// lastLook brings the clients' work to its end and looks at all that they wrote. Errors: something is not as it must be.
	lastLook(ctx context.Context) error
	base() *rig
}

// lane brings faults about, one after the other, in one rig after the other, until there are no more. What has begun when work ends is brought to
// its end, and looked at; when ctx ends, it is only cleaned up. Errors: no rig can be built.
func (c *faults) lane(work, ctx context.Context, n int, e hv.Engine, linux bool, build func(name string) (bench, error)) error {
	rnd := rand.New(rand.NewPCG(c.seed, uint64(n)))
	var r bench
	made, failures := 0, 0
	defer func() {
		if r != nil {
			r.base().destroy()
		}
	}()
	for id := range c.next {
		for r == nil {
			made++
			b, err := build(fmt.Sprintf("r%d-%d", n, made))
			if err == nil {
				r, failures = b, 0
				break
			}
			if work.Err() != nil {
				return nil
			}
			if failures++; failures == maxBroken {
				return fmt.Errorf("no rig can be built: %w", err)
			}
			c.say("rig: %v", err)
		}
		seed := newSeed(rnd, e, linux)
		if c.only != nil {
			seed = *c.only
		}
		f := plan(seed, c.among)
		j, err := r.try(ctx, &f)
		if err != nil {
			return nil // interrupted
		}
		j.ID = id
		r.base().done++
		bad := j.Verdict == failed || j.Verdict == silent
		if bad {
			j.Evidence = c.evidence(r.base(), j)
		}
		c.report.add(j.row)
		switch {
		case bad:
			r.base().destroy()
			r = nil
		case r.base().done >= rigLife:
			c.finish(ctx, r, id)
			r = nil
		}
	}
	if r != nil && ctx.Err() == nil {
		c.finish(ctx, r, 0)
		r = nil
	}
	return nil
}

// finish takes the last look at a rig and removes it. What that finds is LOST, by some fault of that rig.
func (c *faults) finish(ctx context.Context, b bench, id int) {
	begin, r := time.Now(), b.base()
	err := b.lastLook(ctx)
	if ctx.Err() == nil {
		j := &judge{r: r, f: &fault{kind: &kind{name: "last look"}}, row: row{ID: id, Kind: "last look", Target: block, Engine: r.engine, Rig: r.name, At: begin,
			What: fmt.Sprintf("looked at all data after %d faults", r.done), Verdict: recovered}}
		if err != nil {
			j.Verdict, j.Why = failed, err.Error()
			j.Evidence = c.evidence(r, j)
		}
		j.TookMs = ms(time.Since(begin))
		c.report.look(j.row)
	}
	r.destroy()
}

// evidence keeps what may tell why a fault ended as it did, and returns the folder.
func (c *faults) evidence(r *rig, j *judge) string {
	dir := filepath.Join(c.keep, fmt.Sprintf("%s-%d", time.Now().UTC().Format("20060102T150405"), j.Seed))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "none: " + err.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), serveLimit)
	defer cancel()
	put := func(name string, v any) {
		b, ok := v.([]byte)
		if !ok {
			b, _ = json.MarshalIndent(v, "", "\t")
		}
		_ = os.WriteFile(filepath.Join(dir, name), b, 0o644)
	}
	put("fault.json", j.row)
	events, _ := r.events.seen()
	put("events.json", events)
	for _, name := range append([]string{bystander}, all...) {
		if d, err := r.api.Driver(ctx, name); err == nil {
			put(name+".json", d)
		}
		if list, err := r.api.Crashes(ctx, name); err == nil {
			put(name+"-crashes.json", list[max(0, len(list)-keptCrashes):])
		}
	}
	for _, v := range r.clients {
		v.mu.Lock()
		put(v.name+".txt", fmt.Appendf(nil, "%q\n", v.tail))
		v.mu.Unlock()
		if vm, err := r.api.VM(ctx, v.name); err == nil {
			put(v.name+".json", vm)
		}
	}
	if vms, err := r.api.VMs(ctx); err == nil {
		for _, v := range vms {
			if b, err := r.box.Do(ctx, "logs", "--tail", strconv.Itoa(keptLines), v.Name); err == nil {
				put(v.Name+".log", b)
			}
		}
	}
	put("account.txt", []byte(r.box.Account(ctx)))
	if b, err := os.ReadFile(r.box.Dirs().Log()); err == nil {
		put("graild.log", b[max(0, len(b)-keptLog):])
	}
	consoles, _ := filepath.Glob(filepath.Join(r.box.Dirs().VMs(), "*", "*"))
	for _, path := range consoles {
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 && len(b) < keptLog {
			put(filepath.Base(filepath.Dir(path))+"-"+filepath.Base(path), b)
		}
	}
	return dir
}

// Bounds of the evidence.
const (
	keptCrashes = 5
	keptLines   = 300
	keptLog     = 256 << 10
)

// write writes campaign.json.
func (c *faults) write() error {
	f, err := os.Create(c.results)
	if err != nil {
		return err
	}
	err = c.report.json(f, c.seed)
	return errors.Join(err, f.Close())
}
