package daemon

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/store"
	"github.com/grailos/grail/mgmt/tenant"
)

// startTimeout is how long a driver's program may take until it is ready: engine process on a busy host is slow.
const startTimeout = 20 * time.Second

// failedStartPause is the shortest time between two attempts to start a driver that did not start at all.
const failedStartPause = time.Second

// ending says how and when an instance ended.
type ending struct {
	report                     *hv.Report
	crashed, detected, stopped time.Time
}

// run is the driver's life: instance after instance. inst is an adopted one, or nil to start one; rec is the unfinished
// record of how the last one ended, or nil.
func (dr *driver) run(inst *driverInstance, rec *recovery) {
	var helpers sync.WaitGroup
	if dr.rec.Config.Socket {
		helpers.Go(func() { dr.runPortal(dr.adopted) })
	}
	if dr.rec.Config.Type == typeNet {
		helpers.Go(dr.keepNames)
	}
	if dr.rec.Config.Uplink != "" {
		helpers.Go(dr.runNAT)
	}
	defer close(dr.stopped)
	defer helpers.Wait()
	defer dr.endSpares()
	helpers.Go(dr.keepSpares)
	helpers.Go(dr.keepStandIn)
	defer func() { rec.complete() }()
	for {
		var err error
		if inst == nil {
			dr.leave()
			inst, err = dr.next(rec)
		}
		var end *ending
		if err == nil {
			end, err = dr.serve(inst, rec)
		}
		dr.knowOnce.Do(func() { close(dr.known) })
		if dr.stopping() {
			return
		}
		var wait time.Duration
		var why string
		if end != nil {
			rec.complete()
			rec, wait = dr.died(inst, end)
			why = "it keeps failing: " + describe(end.report)
		} else {
			dr.mu.Lock()
			wait = max(dr.backoff.Died(0, false), failedStartPause)
			dr.mu.Unlock()
			why = err.Error()
			dr.d.log.Error("driver does not start", "driver", dr.name(), "error", err, "next", wait)
		}
		inst = nil
		if wait > 0 && !dr.rest(wait, why) {
			return
		}
	}
}

// stopping reports whether the loop is to end: for good, which the state then says, or because graild ends, and leaves
// the instance to the next one.
func (dr *driver) stopping() bool {
	select {
	case <-dr.d.closing:
		return true
	case <-dr.stop:
		dr.mu.Lock()
		dr.set(api.Exited, "")
		dr.mu.Unlock()
		return true
	default:
		return false
	}
}

// rest waits out a back-off, or for somebody to end a crash loop, and reports whether the driver is still wanted.
func (dr *driver) rest(wait time.Duration, why string) bool {
	var over <-chan time.Time
	dr.mu.Lock()
	if dr.backoff.Looping() {
		dr.set(api.CrashLoop, fmt.Sprintf("%s; its clients %s; once that is mended: grailctl driver resume %s", why, dr.meanwhile(), dr.name()))
		dr.d.log.Error("driver in a crash loop", "driver", dr.name(), "why", why)
	} else {
		dr.set(api.BackOff, fmt.Sprintf("%s; next attempt %v after that, or now with grailctl driver resume %s", why, wait, dr.name()))
		t := time.NewTimer(wait)
		defer t.Stop()
		over = t.C
	}
	dr.mu.Unlock()
	select {
	case <-over:
	case <-dr.hurry:
	case <-dr.stop:
	case <-dr.d.closing:
	}
	return !dr.stopping()
}

// next starts the next instance.
func (dr *driver) next(rec *recovery) (*driverInstance, error) {
	dr.mu.Lock()
	state, program := api.Starting, dr.rec.Program
	if dr.rec.Generation > 0 {
		state = api.Recovering
	}
	dr.mu.Unlock()
	inst := dr.takeSpare()
	spare := inst != nil
	if spare {
		inst.launched = time.Now()
	} else {
		if err := dr.reopen(); err != nil {
			return nil, err
		}
		var err error
		if inst, err = dr.d.launchDriver(dr, dr.nextLaunch(), program); err != nil {
			return nil, err
		}
	}
	if rec != nil {
		rec.crash.Launched, rec.crash.Spare = inst.launched, spare
	}
	dr.mu.Lock()
	dr.inst = inst
	dr.rec.Generation++
	dr.rec.Engine, dr.rec.Started, dr.rec.Runs = inst.engine, inst.launched, inst.program
	dr.rec.Process = store.Process{PID: inst.proc.PID, Start: inst.proc.StartTime(), BootID: dr.d.bootID, Launch: inst.generation}
	dr.d.store.PutDriverLater(&dr.rec)
	dr.set(state, "")
	dr.mu.Unlock()
	return inst, nil
}

// serve brings an instance up, watches it and returns how it ended; nil and an error when it never served for a reason
// that another instance would meet as well; nil and nil when the driver is to stop. Its process is gone afterwards.
func (dr *driver) serve(inst *driverInstance, rec *recovery) (*ending, error) {
	leave := false
	defer func() {
		if !leave {
			inst.end()
			inst.close()
		}
		dr.lookAtState(inst)
		if leave {
			dr.saveState()
		}
		inst.closePages()
	}()
	up := make(chan error, 1)
	go func() { up <- dr.bringUp(inst, rec) }()
	var err error
	select {
	case err = <-up:
	case <-inst.hung:
		inst.askEnd(lastWord)
		inst.end()
		if err = <-up; err == nil {
			err = errEnded
		}
	case <-dr.stop:
		inst.end()
		<-up
		return nil, nil
	case <-dr.d.closing:
		leave = true
		return nil, nil
	}
	if err != nil && !errors.Is(err, errEnded) {
		return nil, err
	}
	unwatch := func() {}
	if err == nil {
		unwatch = dr.monitor(inst, rec)
	}
	select {
	case <-inst.ended:
	case <-inst.hung:
	case <-dr.stop:
	case <-dr.d.closing:
		leave = true
		unwatch()
		return nil, nil
	}
	detected := time.Now()
	if inst.isHung() {
		inst.askEnd(lastWord)
	}
	inst.end()
	stopped := time.Now()
	unwatch()

	r := readReport(inst.report, dr.name())
	if m := dr.d.vmmError(roleDriver, dr.name(), inst.generation); r.Cause == hv.CauseKilled && m != "" {
		r.Message = m
	}
	if !ofHost(&dr.rec.Config) {
		dr.d.domains.blame(tenant.Path(dr.rec.Config.Tenant), dr.key(), 0, r)
	}
	if err != nil && (r.Cause == hv.CauseSetup || r.Cause == hv.CauseEngine) {
		return nil, errors.New(describe(r))
	}
	return dr.judge(inst, r, detected, stopped), nil
}

// maxLastWord bounds how long before an instance's end the fault was that it ended by: an older one was another.
const maxLastWord = time.Second

// judge corrects a report by what graild knows better.
func (dr *driver) judge(inst *driverInstance, r *hv.Report, detected, stopped time.Time) *ending {
	dr.mu.Lock()
	inj := dr.injected
	dr.mu.Unlock()
	e := &ending{report: r, crashed: r.Ended, detected: detected, stopped: stopped}
	// A report of its own says more: it died before it was ended as hung.
	hung := inst.isHung() && (r.Cause == hv.CauseKilled || r.Cause == hv.CauseStop)
	switch {
	case hung && r.Fault != nil && r.Fault.Signal != 0:
		// It was dying of a fault, too slowly: printing its stack, perhaps.
		r.Cause, r.Signal, r.Message = hv.CauseSignal, r.Fault.Signal, "the program faulted and did not end within the heartbeat period"
		e.crashed = time.Unix(0, inst.hungSince.Load())
	case hung && inst.starved.Load():
		r.Cause, r.Message = hv.CauseMemory, "the program got no memory, and did not end within the heartbeat period"
		e.crashed = time.Unix(0, inst.hungSince.Load())
	case hung && inst.lied.Load() != nil:
		r.Cause, r.Message = hv.CauseProtocol, "the driver broke the rules of a ring: "+*inst.lied.Load()
		e.crashed = time.Unix(0, inst.hungSince.Load())
	case hung && inst.stalled.Load() != nil:
		r.Cause, r.Message = hv.CauseStall, *inst.stalled.Load()+" although its heartbeat went on"
		e.crashed = time.Unix(0, inst.hungSince.Load())
	case hung:
		r.Cause, r.Message = hv.CauseHang, "the heartbeat stood still with work pending"
		e.crashed = time.Unix(0, inst.hungSince.Load())
	case r.Cause == hv.CauseKilled && inj.kills():
		r.Message = "the VM's process was killed on request"
		e.crashed = inj.at
	case r.Cause == hv.CauseKilled:
		e.crashed = detected
	}
	if inj.immediate() && r.Cause != hv.CauseHang {
		e.crashed = inj.at // its last word comes later
	}
	if r.Cause == hv.CauseSignal && r.Fault != nil && r.Fault.Taken.After(e.crashed.Add(-maxLastWord)) {
		e.crashed = r.Fault.Taken
	}
	if e.crashed.IsZero() || e.crashed.After(detected) {
		e.crashed = detected
	}
	return e
}

// bringUp waits until the instance is ready and attaches every client.
func (dr *driver) bringUp(inst *driverInstance, rec *recovery) error {
	st := &hv.Status{} // of a spare that has booted there is nothing to ask
	if !inst.booted.Load() {
		var err error
		if st, err = inst.waitReady(startTimeout); err != nil {
			return err
		}
	}
	if rec != nil {
		rec.crash.Ready = time.Now()
	}
	dr.relieve()
	var state *api.DriverState
	if !inst.adopted || len(st.Attached) == 0 && inst.stateless() {
		state = dr.giveState(inst)
	}
	if rec != nil {
		rec.crash.State = state
	}
	dr.keepServed(inst, st.Attached)
	dr.breakEpochs(inst)
	tried := map[*client]bool{}
	var late []*client // that have to start their rings anew first
	for {
		dr.mu.Lock()
		todo := slices.DeleteFunc(dr.clientList(), func(c *client) bool { return tried[c] || c.leaving() })
		if len(todo) == 0 && len(late) == 0 {
			if rec != nil {
				rec.crash.Attached = time.Now()
			}
			dr.set(api.Ready, "")
			dr.mu.Unlock()
			dr.rename()
			if inst.adopted {
				go dr.shareAgain()
			}
			return nil
		}
		dr.mu.Unlock()
		if len(todo) == 0 {
			var aside []*client
			todo, aside = awaitEpochs(late, inst.ended)
			late = nil
			for _, c := range aside {
				dr.attachLater(inst, c)
			}
		}
		for _, c := range todo {
			tried[c] = true
			err := inst.attach(c, fromMs(dr.config().HeartbeatMs))
			switch {
			case errors.Is(err, errAside):
				late = append(late, c)
			case err == nil:
				// Both sides look again: either may have missed the other's last doorbell.
				c.call()
				c.kick()
			case errors.Is(err, errLeft):
			case inst.gone() || errors.Is(err, hv.ErrClosed):
				inst.awaitEnd()
				return errEnded
			case errors.Is(err, errTimeout):
				return fmt.Errorf("attaching client %s took longer than %v", c.att.Client, attachTimeout)
			default:
				dr.d.log.Error("attach", "driver", dr.name(), "client", c.att.Client, "disk", c.att.Disk, "error", err)
			}
		}
	}
}

// keepServed takes note of what an adopted instance serves already, and ends what nobody wants any more. What belongs to
// vhost-user clients is sorted out when the portal has been asked.
func (dr *driver) keepServed(inst *driverInstance, served []uint64) {
	strays := map[uint64]bool{}
	dr.mu.Lock()
	portal := dr.rec.Config.Socket
	for _, id := range served {
		c := dr.clients[id]
		if c == nil {
			strays[id] = true
			continue
		}
		c.mu.Lock()
		c.on = inst
		c.mu.Unlock()
	}
	dr.mu.Unlock()
	inst.mu.Lock()
	inst.strays = strays
	inst.mu.Unlock()
	dr.dropStrays(func(id uint64) bool { return !portal || id < hv.PortalIDs })
	dr.knowOnce.Do(func() { close(dr.known) })
}

// died makes the crash record of an instance, unless it was ended to be replaced, and returns how long its successor has
// to wait.
func (dr *driver) died(inst *driverInstance, e *ending) (*recovery, time.Duration) {
	dr.mu.Lock()
	planned, inj := dr.planned, dr.injected
	dr.planned, dr.injected = false, injection{}
	dr.stateDied(e.crashed.Sub(inst.launched), planned || inj.how != "")
	for _, c := range dr.clients {
		c.mu.Lock()
		if c.on == inst {
			c.on = nil
		}
		c.lied = c.lied || inst.lied.Load() != nil
		c.mu.Unlock()
	}
	if planned {
		dr.mu.Unlock()
		_ = os.Remove(inst.report)
		return nil, 0
	}
	dr.rec.Crashes++
	wait := dr.backoff.Died(e.crashed.Sub(inst.launched), inj.how != "")
	dr.lastEnd = describe(e.report)
	var unwanted []*driverInstance
	if dr.rollBack(inst, inj.how != "") {
		unwanted = dr.takeSpares()
		wait = 0
	}
	dr.set(api.Recovering, dr.lastEnd)
	c := api.Crash{Driver: dr.name(), Generation: dr.rec.Generation, Launch: inst.generation, Cause: e.report.Cause, Message: describe(e.report),
		Injected: inj.how, InjectedSeed: inj.seed, Clients: len(dr.clients), Crashed: e.crashed, Detected: e.detected, Stopped: e.stopped, Report: e.report}
	c.Program = inst.program
	for _, k := range dr.clientList() {
		if c.Rings = append(c.Rings, k.rings()...); len(c.Rings) >= maxRings {
			c.Rings = c.Rings[:maxRings]
			break
		}
	}
	dr.mu.Unlock()
	dr.discard(unwanted...)
	c.ID, _ = dr.d.store.NextID()
	dr.d.log.Warn("driver died", "driver", c.Driver, "generation", c.Generation, "cause", c.Cause, "injected", c.Injected, "why", c.Message)
	return dr.d.newRecovery(c, inst.report), wait
}

// maxRings bounds the queues in a crash record.
const maxRings = 64

// lastWord is how long a hanging driver's process may take to write a report, which costs recovery time.
const lastWord = 25 * time.Millisecond

func (i *driverInstance) isHung() bool {
	select {
	case <-i.hung:
		return true
	default:
		return false
	}
}

// askEnd has the process end by itself, with a report, within a time; whether it does is for the caller to see.
func (i *instance) askEnd(within time.Duration) {
	limit := time.NewTimer(within)
	defer limit.Stop()
	_, got, err := i.call(hv.Request{Op: hv.OpKill}, within)
	closeFDs(got)
	if err != nil && !errors.Is(err, hv.ErrClosed) {
		return
	}
	select {
	case <-i.ended:
	case <-limit.C:
	}
}

// inject sends the driver a request to misbehave. It may do so before the answer is out.
func (i *driverInstance) inject(how string) error {
	_, got, err := i.call(hv.Request{Op: hv.OpMessage, Message: &abi.Message{Type: abi.MsgInject, Text: how}}, callTimeout)
	closeFDs(got)
	if errors.Is(err, hv.ErrClosed) {
		return nil
	}
	return err
}

// awaitEnd gives a process whose connections broke a little time to be gone.
func (i *instance) awaitEnd() {
	select {
	case <-i.ended:
	case <-time.After(callTimeout):
	}
}

// pendingClients returns the clients that inst serves and that wait for something.
func (dr *driver) pendingClients(inst *driverInstance) []*client {
	dr.mu.Lock()
	list := dr.clientList()
	dr.mu.Unlock()
	return slices.DeleteFunc(list, func(c *client) bool {
		c.mu.Lock()
		served := c.on == inst && !c.dead
		c.mu.Unlock()
		return !served || !c.pending()
	})
}

// describe says in one line how a run ended.
func describe(r *hv.Report) string {
	switch r.Cause {
	case hv.CauseExit:
		s := fmt.Sprintf("exited with code %d", r.Code)
		if r.Code != 0 && r.Fault != nil && r.Fault.Signal != 0 {
			s += ", having taken signal " + unix.SignalName(unix.Signal(r.Fault.Signal))
		}
		if r.Message != "" {
			s += ", " + r.Message
		}
		if r.Code != 0 && r.Said != "" {
			s += ": " + r.Said
		}
		return s
	case hv.CauseSignal:
		s := "ended by signal " + unix.SignalName(unix.Signal(r.Signal))
		if r.Message != "" {
			s += ": " + r.Message
		}
		return s
	case hv.CauseStop:
		return "stopped on request"
	case hv.CauseMemory:
		if r.Message == "" {
			return "used up its memory"
		}
	}
	if r.Message != "" {
		return r.Message
	}
	return string(r.Cause)
}
