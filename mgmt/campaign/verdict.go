package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// verdict says how a fault ended.
type verdict string

// The verdicts.
const (
	// recovered: nobody noticed more than a pause, and the driver serves.
	recovered verdict = "recovered"
	// degraded: as was promised. A client was told of a fault of the host's device, or an upgrade that met another fault was refused.
	degraded verdict = "degraded"
	// silent: a driver whose own memory was flipped lied, and nothing outside of it could tell.
	silent verdict = "SILENT"
	// failed: data lost or corrupt, an error that was not promised, a VM harmed that had nothing to do with it, a crash of what is trusted,
	// or no service in time.
	failed verdict = "LOST"
	// refused: the fault was not brought about. It does not count.
	refused verdict = "refused"
)

// row is what is known about a fault in the end.
type row struct {
	ID        int       `json:"id"`
	Seed      uint64    `json:"seed"`
	Kind      string    `json:"kind"`
	Second    string    `json:"second,omitempty"` // kind of a fault during the recovery
	Target    string    `json:"target"`
	Target2   string    `json:"target2,omitempty"` // of the second one, if another
	Engine    hv.Engine `json:"engine"`
	Rig       string    `json:"rig"`
	Verdict   verdict   `json:"verdict"`
	RecoverMs float64   `json:"recoverMs,omitempty"` // from the crash to the first completed request, by graild's record
	StallMs   float64   `json:"stallMs,omitempty"`   // longest request of the target's clients
	Bystander float64   `json:"bystanderMs"`         // longest request of the VM that had nothing to do with it
	Cause     string    `json:"cause,omitempty"`     // of the driver's death; empty: it lived
	What      string    `json:"what"`                // what was done
	Why       string    `json:"why,omitempty"`       // of any verdict but recovered
	Evidence  string    `json:"evidence,omitempty"`  // folder
	At        time.Time `json:"at"`
	TookMs    float64   `json:"tookMs"` // in all, with the checks
}

// judge is the finding of verdicts about one fault.
type judge struct {
	r *rig
	f *fault
	row

	mu    sync.Mutex
	wrong []string // LOST
	told  []string // degraded
	lied  []string // SILENT, or LOST where that is not allowed
}

func (j *judge) lost(format string, args ...any)      { j.note(&j.wrong, format, args...) }
func (j *judge) degrade(format string, args ...any)   { j.note(&j.told, format, args...) }
func (j *judge) liedAbout(format string, args ...any) { j.note(&j.lied, format, args...) }

func (j *judge) note(list *[]string, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if s := fmt.Sprintf(format, args...); !slices.Contains(*list, s) {
		*list = append(*list, s)
	}
}

// try brings a fault about and judges it. Errors: none of the fault's; the campaign is over.
func (r *rig) try(ctx context.Context, f *fault) (*judge, error) { return r.judge(ctx, f, r.happen) }

func (r *rig) judge(ctx context.Context, f *fault, happen func(context.Context, *judge) error) (*judge, error) {
	j := &judge{r: r, f: f, row: row{Seed: f.seed, Kind: f.kind.name, Target: f.target, Engine: f.engine, Rig: r.name, At: time.Now()}}
	if f.second != nil {
		j.Second = f.second.kind.name
		if f.second.target != f.target {
			j.Target2 = f.second.target
		}
	}
	limited, cancel := context.WithTimeout(ctx, faultLimit)
	defer cancel()
	err := happen(limited, j)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	switch {
	case errors.Is(err, errRefused):
		j.Verdict, j.Why = refused, err.Error()
	case err != nil:
		j.lost("%v", err)
	}
	if j.Verdict == "" {
		j.decide()
	}
	j.TookMs = ms(time.Since(j.At))
	return j, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// maxReasons bounds those that are written down.
const maxReasons = 4

// decide makes one verdict of what was found.
func (j *judge) decide() {
	lies := j.f.has(func(k *kind) bool { return k.lies })
	because := func(v verdict, list []string) {
		if n := len(list) - maxReasons; n > 0 {
			list = append(list[:maxReasons:maxReasons], fmt.Sprintf("and %d more", n))
		}
		j.Verdict, j.Why = v, strings.Join(list, "; ")
	}
	switch {
	case len(j.wrong) > 0 || len(j.lied) > 0 && !lies:
		because(failed, append(j.wrong, j.lied...))
	case len(j.lied) > 0:
		because(silent, j.lied)
	case len(j.told) > 0:
		because(degraded, j.told)
	default:
		j.Verdict = recovered
	}
}

// happen has the fault happen and looks what comes of it. Errors: errRefused; the rig does not come back.
func (r *rig) happen(ctx context.Context, j *judge) error {
	f := j.f
	r.events.fresh()
	for _, v := range r.clients {
		v.fresh()
	}
	before, err := r.look(ctx)
	if err != nil {
		return err
	}
	users := r.users(f.targets())
	for _, v := range users {
		v.pace(busyGap)
	}
	defer func() {
		for _, v := range users {
			v.pace(0)
		}
	}()
	wait(ctx, f.lead)

	// The fault, and the second one.
	var after later
	var second sync.WaitGroup
	var what2 string
	var err2 error
	var after2 later
	if f.second != nil {
		second.Go(func() {
			wait(ctx, f.second.gap)
			what2, err2 = r.harm(ctx, f.second.kind, f.second.target, f, &after2)
		})
	}
	what, err := r.harm(ctx, f.kind, f.target, f, &after)
	second.Wait()
	j.What = what
	if what2 != "" {
		j.What += fmt.Sprintf("; after %.1f ms: %s", ms(f.second.gap), what2)
	}
	switch {
	case errors.Is(err2, errRefused):
		j.What += fmt.Sprintf("; no second fault: %v", err2)
		f.second, j.Second, j.Target2 = nil, "", ""
	case err2 != nil:
		return err2
	}
	if err != nil && !(errors.Is(err, errRefused) && f.second != nil) {
		return err
	}
	after.ends, after.broken = append(after.ends, after2.ends...), append(after.broken, after2.broken...)
	out := slices.Concat(after.killed, after2.killed) // of no interest for a while
	for _, v := range after.broken {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	if len(out) > 1 && out[0] == out[1] { // a client can be killed once more while it is dying
		out = out[1:]
	}

	// Who dies of it, and who serves again.
	dead := r.awaitDeaths(ctx, j, before)
	for _, end := range after.ends {
		select {
		case err := <-end:
			if err != nil && f.second == nil {
				j.degrade("%v", err)
			} else if err != nil {
				j.What += "; " + err.Error()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	limit, cancel := context.WithTimeout(ctx, serveLimit)
	defer cancel()
	if err := r.serve(limit, out); err != nil {
		j.lost("%v", err)
	}
	survivor := f.kind.taints && !slices.Contains(dead, f.target)
	renew := func() {
		if err := r.renew(limit, f.target); err != nil {
			j.lost("a driver that survived its fault: %v", err)
		}
	}
	mute := survivor && f.kind.lies && r.mute(limit, f.target)
	events, _ := r.events.seen() // without those of a renewal
	if mute {
		j.liedAbout("driver %s beats, takes its clients' frames, and delivers none", f.target)
		renew()
	}
	r.probeAll(limit, j, users, out)
	for _, v := range users {
		v.pace(0)
	}
	if !mute {
		events, _ = r.events.seen()
	}
	if survivor && !mute {
		renew()
	}
	for _, v := range after.broken {
		if v.gone() {
			continue
		}
		if _, err := r.api.StopVM(limit, v.name, api.StopVM{}); err != nil && api.KindOf(err) != api.Busy {
			j.lost("VM %s, which broke the rules, is not ended: %v", v.name, err)
		}
	}
	for _, v := range out {
		if err := v.again(limit); err != nil {
			j.lost("VM %s was ended and does not start again: %v", v.name, err)
		}
	}
	r.verify(limit, j, events, out)
	r.settle(limit, j, dead)
	return nil
}

// muteLimit is when a network that is not down must have let something through.
const muteLimit = 10 * time.Second

// mute reports whether a driver of a network lets nothing through, though it seems to work. That nobody can tell from outside: networks may lose frames.
func (r *rig) mute(ctx context.Context, driver string) bool {
	if driver != network || r.victims[network].gone() {
		return false
	}
	short, cancel := context.WithTimeout(ctx, muteLimit)
	defer cancel()
	_, err := r.victims[network].probe(short)
	return err != nil && short.Err() != nil && ctx.Err() == nil
}

// renew kills a driver that is not what it was, and returns when its next instance serves. That takes its spare, and costs less than a restart.
func (r *rig) renew(ctx context.Context, driver string) error {
	if err := r.retire(ctx, driver); err != nil {
		return err
	}
	return r.serve(ctx, nil)
}

// retire kills a driver and returns when it is known to be dead. One that has died by itself just before is dead as well.
func (r *rig) retire(ctx context.Context, driver string) error {
	before, err := r.api.Crashes(ctx, driver)
	if err != nil {
		return err
	}
	_, err = r.api.CrashDriver(ctx, driver, "kill")
	killed := err == nil
	if err != nil && api.KindOf(err) != api.Busy && !api.Down(err) {
		return err
	}
	for ctx.Err() == nil {
		_, more := r.events.seen()
		// The one that was killed may be the successor of one that died by itself.
		if list, err := r.api.Crashes(ctx, driver); err == nil && slices.ContainsFunc(list, func(c api.Crash) bool {
			return !c.OfSpare && (c.Injected == "kill" || !killed) && !slices.ContainsFunc(before, func(b api.Crash) bool { return b.ID == c.ID })
		}) {
			return nil
		}
		select {
		case <-more:
		case <-time.After(askGap):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// users are the clients that take commands and depend on one of the drivers. Everybody depends on the console driver; two stand for all.
func (r *rig) users(drivers []string) (list []*client) {
	for _, v := range r.clients {
		ofConsole := slices.Contains(drivers, console) && (v == r.writer || v == r.victims[network])
		if !v.silent && (slices.Contains(drivers, v.driver) || ofConsole) {
			list = append(list, v)
		}
	}
	return list
}

// deathLimit is how long a driver may take to die of a fault that is deadly: as long as it takes to find out a stall, on a busy host.
const deathLimit = 40 * time.Second

// awaitDeaths returns the drivers that died of the fault. One that is to die is waited for; another one is looked at for a while.
func (r *rig) awaitDeaths(ctx context.Context, j *judge, before map[string]api.Driver) (dead []string) {
	f := j.f
	died := func(name string) bool {
		now, err := r.look(ctx)
		return err == nil && now[name].Crashes > before[name].Crashes
	}
	look := func(name string, k *kind) {
		limit := time.Now().Add(k.look)
		if k.dies {
			limit = time.Now().Add(deathLimit)
		}
		for ctx.Err() == nil {
			_, more := r.events.seen()
			if died(name) {
				dead = append(dead, name)
				return
			}
			left := time.Until(limit)
			if left <= 0 {
				break
			}
			r.nudge(name)
			select {
			case <-more:
			case <-time.After(min(left, askGap)):
			case <-ctx.Done():
			}
		}
		// With two faults it is the other one that counts, perhaps.
		if k.dies && f.second == nil {
			j.lost("driver %s did not die of %s within %v", name, k.name, deathLimit)
		}
	}
	look(f.target, f.kind)
	if f.second != nil && (f.second.target != f.target || !slices.Contains(dead, f.target)) {
		look(f.second.target, f.second.kind)
	}
	if f.second != nil {
		now, _ := r.look(ctx)
		for _, name := range all {
			if !slices.Contains(dead, name) && now[name].Crashes > before[name].Crashes {
				dead = append(dead, name)
			}
		}
	}
	return dead
}

// askGap is how often graild is asked for what its events do not tell, because it was killed.
const askGap = 40 * time.Millisecond

// nudge gives the clients of the console driver something to say: one whose clients want nothing cannot hang.
func (r *rig) nudge(driver string) {
	if driver == console {
		r.writer.tell("probe 0")
	}
}

// serve returns when all drivers serve all of their clients, except of those that are out of it. graild cannot know which early deaths were on purpose,
// and is told to go on where it waits. Errors: not in time.
func (r *rig) serve(ctx context.Context, out []*client) error {
	for {
		_, more := r.events.seen()
		list, err := r.look(ctx)
		var wrong []string
		for _, d := range list {
			if d.State == api.BackOff || d.State == api.CrashLoop {
				_, _ = r.api.ResumeDriver(ctx, d.Name) // what comes of it is seen in the next round
			}
			if d.State != api.Ready {
				wrong = append(wrong, fmt.Sprintf("driver %s is %s %s", d.Name, d.State, d.Message))
			}
			for _, b := range d.Clients {
				if !b.Attached && !slices.ContainsFunc(out, func(v *client) bool { return v.name == b.Name }) {
					wrong = append(wrong, fmt.Sprintf("driver %s does not serve %s/%s %s", d.Name, b.Name, b.Disk, b.Error))
				}
			}
		}
		if err == nil && len(wrong) == 0 {
			return nil
		}
		select {
		case <-more:
		case <-time.After(askGap):
		case <-ctx.Done():
			if err != nil && len(wrong) == 0 {
				wrong = append(wrong, err.Error())
			}
			return fmt.Errorf("not in time: %s", strings.Join(wrong, "; "))
		}
	}
}

// probeAll checks that requests that begin now are done, of every client that lives, and collects what the clients complain of.
func (r *rig) probeAll(ctx context.Context, j *judge, users, dead []*client) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, v := range r.clients {
		if v.silent || slices.Contains(dead, v) {
			continue
		}
		wg.Go(func() {
			longest, err := v.probe(ctx)
			switch {
			case errors.Is(err, errGone):
				j.lost("VM %s ended: %s", v.name, v.why(ctx))
			case err != nil:
				j.lost("%v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if v.driver == bystander {
				j.Bystander = ms(longest)
			} else if slices.Contains(users, v) {
				j.StallMs = max(j.StallMs, ms(longest))
			}
		})
	}
	wg.Wait()
}

// verify has clients check their data, and judges what they complained of since the fault, and what graild said of it. fresh are those that were started
// anew.
func (r *rig) verify(ctx context.Context, j *judge, events []api.Event, fresh []*client) {
	f := j.f
	for _, v := range r.clients {
		if v.silent {
			if v.gone() {
				j.lost("VM %s ended: %s", v.name, v.why(ctx))
			}
			continue
		}
		if slices.Contains(fresh, v) {
			// A new run. What the last one said is of no interest.
			if _, err := v.probe(ctx); err != nil {
				j.lost("VM %s, started again: %v", v.name, err)
			}
			continue
		}
		if slices.Contains(f.targets(), v.driver) && v.driver == block {
			if _, err := v.ask(ctx, "check"); err != nil {
				j.lost("VM %s: %v", v.name, err)
			}
		}
		errs, bads := v.complaints()
		own := slices.Contains(f.targets(), v.driver)
		for _, s := range bads {
			if own {
				j.liedAbout("VM %s: %s", v.name, s)
			} else {
				j.lost("VM %s, of driver %s: %s", v.name, v.driver, s)
			}
		}
		for _, s := range errs {
			switch {
			case own && v.driver == f.target && f.kind.way == outage && !r.events.has("driver fails its clients' requests") && !f.has(killsGraild):
				j.lost("VM %s was told an error before the policy applied: %s", v.name, s)
			case own && v.driver == f.target && f.kind.fails:
				j.degrade("VM %s: %s", v.name, s)
			case own && v.driver == f.target && f.kind.lies:
				j.liedAbout("VM %s was told an error that was none: %s", v.name, s)
			default:
				j.lost("VM %s: %s", v.name, s)
			}
		}
	}
	if slices.Contains(f.targets(), console) {
		if err := r.log.compare(ctx); errors.Is(err, errLog) {
			j.liedAbout("%v", err)
		} else if err != nil {
			j.lost("%v", err)
		}
	}
	// What is trusted.
	switch v, err := r.api.Version(ctx); {
	case err != nil:
		j.lost("graild does not answer: %v", err)
	case v.PID != r.graild:
		j.lost("graild, process %d, died by itself", r.graild)
	}
	mayBeKilled := f.has(func(k *kind) bool { return k.killed })
	for _, e := range events {
		if e.Details["injected"] == "kill" && e.Time.Before(j.At) {
			continue // what a survivor of the fault before was replaced by may be told only now
		}
		if e.Event == "driver died" && e.Details["cause"] == string(hv.CauseKilled) && !mayBeKilled {
			j.lost("the process of driver %s ended without a last word: %s", e.Details["driver"], e.Details["why"])
		}
		if (e.Event == "driver died" || e.Event == "driver recovered") && e.Details["driver"] == f.target && j.Cause == "" {
			j.Cause = e.Details["cause"]
		}
	}
}

// recordLimit is how long the record of a recovery is waited for: it has a stack with names in it.
const recordLimit = 2 * time.Second

// killsGraild says of what graild forgets its events.
func killsGraild(k *kind) bool { return k.way == killGraild }

// settle waits until graild has written about the recovery.
func (r *rig) settle(ctx context.Context, j *judge, dead []string) {
	if !slices.Contains(dead, j.f.target) || j.f.has(killsGraild) {
		return
	}
	if e, err := r.events.await(ctx, "driver recovered", j.f.target, recordLimit); err == nil {
		j.RecoverMs, _ = strconv.ParseFloat(e.Details["ms"], 64)
	}
}
