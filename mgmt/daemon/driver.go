package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grailos/grail/drivervms/blk"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/reincarnation"
	"github.com/grailos/grail/mgmt/store"
)

// driver is a driver VM: a sequence of instances over the same devices and clients. Its loop alone starts and ends
// instances.
type driver struct {
	d *Daemon

	mu        sync.Mutex
	rec       store.Driver
	backings  []*backing
	state     api.State
	message   string
	lastEnd   string            // why the last instance ended
	inst      *driverInstance   // the present one, also while it starts and ends
	spares    []*driverInstance // booted, or booting, to be the next ones; older first
	ending    bool              // the loop has ended
	clients   map[uint64]*client
	changed   chan struct{} // closed and replaced whenever state or inst changes
	injected  injection
	portal    *portal               // with a vhost-user socket for each disk, or nil
	portalErr error                 // why there is none
	uplink    *uplink               // of a net driver, or nil
	nat       *nat                  // the far end of the uplink, or nil
	natEnds   natEnds               // how its processes ended
	published map[string]*published // by ID
	planned   bool                  // the present instance is being replaced on request
	backoff   reincarnation.Backoff
	kept      stateCopy     // what its instances pass on
	tuned     chan struct{} // closed and replaced when the policy has changed

	down      bool            // no instance is there that could touch the clients
	downSince time.Time       // when it began not to serve; see settled
	standIn   *driverInstance // fails the clients' requests, or nil
	standing  sync.Mutex      // held while the clients are attached to standIn

	diskErrors diskErrors

	readySince   time.Time
	spareNext    time.Time // when the next spare may be started
	spareNote    string    // why there are fewer spares than wanted
	spareBackoff reincarnation.Backoff

	upgrading  sync.Mutex // held during an upgrade
	publishing sync.Mutex // held while the NAT process is told what is published

	adopted  *running      // the predecessor's portal process
	stop     chan struct{} // closed to end the driver for good
	stopOnce sync.Once
	known    chan struct{} // closed when it is known what an adopted instance serves
	knowOnce sync.Once
	hurry    chan struct{} // ends a back-off
	naming   chan struct{} // holds one element when names may have changed
	stopped  chan struct{} // closed by the loop
}

func (d *Daemon) newDriver(rec *store.Driver) *driver {
	defaultPolicy(&rec.Config)
	return &driver{d: d, rec: *rec, tuned: make(chan struct{}), state: api.Starting, clients: map[uint64]*client{}, published: map[string]*published{}, changed: make(chan struct{}),
		stop: make(chan struct{}), known: make(chan struct{}), hurry: make(chan struct{}, 1), naming: make(chan struct{}, 1), stopped: make(chan struct{})}
}

// set changes the state and wakes whoever waits for that. The caller holds dr.mu.
func (dr *driver) set(s api.State, message string) {
	if s == api.Ready && dr.state != s {
		dr.readySince = time.Now()
	}
	dr.state, dr.message = s, message
	close(dr.changed)
	dr.changed = make(chan struct{})
}

// waitFor returns when ok holds, which is called with dr.mu held.
func (dr *driver) waitFor(ctx context.Context, ok func() bool) error {
	for {
		dr.mu.Lock()
		if ok() {
			dr.mu.Unlock()
			return nil
		}
		changed := dr.changed
		dr.mu.Unlock()
		select {
		case <-changed:
		case <-dr.stopped:
			return api.Errorf(api.NotFound, "driver %s was removed", dr.name())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// name is fixed for the driver's life.
func (dr *driver) name() string { return dr.rec.Config.Name }

// device describes one of the driver's disks.
func (dr *driver) device(id string) (blk.Device, error) {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	var have []string
	for _, b := range dr.backings {
		if b.id == id {
			return b.device(), nil
		}
		have = append(have, b.id)
	}
	return blk.Device{}, api.Errorf(api.NotFound, "driver %s has no disk %q; it has %s", dr.name(), id, quoted(have))
}

// attach adds a client and returns when the present instance serves it, or will do so as soon as the client has started its rings anew. A client
// that cannot be attached is not kept; its files are the caller's either way.
func (dr *driver) attach(ctx context.Context, c *client) error {
	dr.mu.Lock()
	dr.own(c)
	dr.set(dr.state, dr.message)
	dr.mu.Unlock()
	for {
		var inst *driverInstance
		loop := ""
		err := dr.waitFor(ctx, func() bool {
			inst = dr.inst
			if dr.standIn != nil {
				inst = dr.standIn
				return true
			}
			if dr.state == api.CrashLoop {
				loop = dr.message
			}
			return dr.state == api.Ready || loop != ""
		})
		if loop != "" {
			err = api.Errorf(api.Busy, "it is in a crash loop: %s", loop)
		}
		if err != nil {
			dr.forget(c)
			return fmt.Errorf("attach to driver %s: %w", dr.name(), err)
		}
		err = inst.attach(c, fromMs(dr.config().HeartbeatMs))
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errAside): // a driver that it waited for has broken the rules of somebody's ring
			dr.attachLater(inst, c)
			return nil
		case errors.Is(err, errTimeout):
			inst.declareHung(time.Now())
		case errors.Is(err, errLeft):
			dr.forget(c)
			return err
		case !inst.gone() && !errors.Is(err, hv.ErrClosed):
			dr.forget(c)
			return fmt.Errorf("attach to driver %s: %w", dr.name(), err)
		}
		// The instance died under it: the loop attaches it to the next one.
		select {
		case <-inst.ended:
		case <-ctx.Done():
		}
		if err := dr.waitFor(ctx, func() bool { return dr.inst != inst && dr.standIn != inst }); err != nil {
			dr.forget(c)
			return fmt.Errorf("attach to driver %s: %w", dr.name(), err)
		}
	}
}

// own counts c among the clients. The caller holds dr.mu.
func (dr *driver) own(c *client) {
	c.net = dr.rec.Config.Type == typeNet
	if dr.rec.Config.Type != typeConsole {
		c.gets = func() string { return shareText(dr.shareOf(c)) }
	}
	dr.clients[c.att.ID] = c
}

// forget is the opposite of own, and tells those who wait for that.
func (dr *driver) forget(c *client) {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	delete(dr.clients, c.att.ID)
	dr.set(dr.state, dr.message)
}

// detach ends the service for a client and forgets it, also while it is being attached. Its files stay the caller's.
func (dr *driver) detach(c *client) {
	c.mu.Lock()
	c.gone = true
	c.mu.Unlock()
	c.attaching.Lock()
	defer c.attaching.Unlock()
	defer dr.forget(c)
	c.mu.Lock()
	inst := c.on
	c.on = nil
	c.mu.Unlock()
	if inst == nil {
		return
	}
	if err := inst.detach(c.att.ID); err != nil && !inst.gone() {
		dr.d.log.Warn("detach", "driver", dr.name(), "attachment", c.att.ID, "error", err)
	}
}

// clientList returns the clients by ID. The caller holds dr.mu.
func (dr *driver) clientList() []*client {
	list := make([]*client, 0, len(dr.clients))
	for _, id := range slices.Sorted(maps.Keys(dr.clients)) {
		list = append(list, dr.clients[id])
	}
	return list
}

// kill ends the driver for good and returns when its process is gone.
func (dr *driver) kill() {
	dr.stopOnce.Do(func() { close(dr.stop) })
	<-dr.stopped
}

// crash makes the present instance fail; if the driver is just starting, once it serves.
func (dr *driver) crash(ctx context.Context, how string) error {
	inst, err := dr.toCrash(ctx)
	if err != nil {
		return err
	}
	dr.expect(injection{how: how, at: time.Now()})
	switch {
	case how == "kill":
		err = inst.proc.Kill()
	case how == "fault", how == "hang", how == "stall", strings.HasPrefix(how, "lie:") && dr.rec.Config.Type != typeConsole:
		err = inst.inject(how)
	default:
		err = api.Errorf(api.Invalid, "a driver can be crashed by kill, fault, hang or stall, not %q", how)
	}
	if err != nil {
		dr.expect(injection{})
	}
	return err
}

// restart replaces the present instance, after what is in flight is done.
func (dr *driver) restart(ctx context.Context) error {
	dr.mu.Lock()
	dr.backoff.Reset()
	if dr.state != api.Ready {
		dr.mu.Unlock()
		select {
		case dr.hurry <- struct{}{}:
		default:
		}
		return dr.waitFor(ctx, func() bool { return dr.state == api.Ready })
	}
	spares := dr.takeSpares() // they may run from an older program
	dr.mu.Unlock()
	dr.discard(spares...)
	return dr.replace(ctx)
}

// replace has the next instance take over from the present one, after what is in flight is done. Where the present one is not there, it
// waits for the next one.
func (dr *driver) replace(ctx context.Context) error {
	dr.mu.Lock()
	inst, serves := dr.inst, dr.state == api.Ready
	if !serves {
		dr.mu.Unlock()
		return dr.waitFor(ctx, func() bool { return dr.state == api.Ready })
	}
	clients := dr.clientList()
	dr.planned = true
	dr.set(api.Recovering, "replaced on request")
	dr.mu.Unlock()
	for _, c := range clients {
		c.mu.Lock()
		served := c.on == inst
		c.mu.Unlock()
		if served {
			_ = inst.detach(c.att.ID) // what cannot be drained is replayed
		}
	}
	_ = inst.proc.Kill()
	return dr.waitFor(ctx, func() bool { return dr.inst != inst && dr.state == api.Ready })
}

// close releases the devices, after the loop has ended.
func (dr *driver) close() {
	for _, b := range dr.backings {
		b.file.Close()
	}
	dr.uplink.close()
	for _, p := range dr.published {
		p.socket.Close()
	}
}

// view describes the driver.
func (dr *driver) view() api.Driver {
	dr.mu.Lock()
	v := api.Driver{DriverConfig: dr.rec.Config, State: dr.state, Message: dr.message, Generation: dr.rec.Generation,
		EngineUsed: dr.rec.Engine, Created: dr.rec.Created, Started: dr.rec.Started, Crashes: dr.rec.Crashes,
		Program: dr.rec.Runs, SparesUp: dr.sparesUp(), SpareCrashes: dr.rec.SpareCrashes, Notes: slices.Clone(dr.rec.Notes), Clients: []api.Binding{}, Logs: dr.d.logsOf(dr.name())}
	v.Spare, v.Failing = v.SparesUp > 0, dr.standIn != nil
	if dr.spareNote != "" {
		v.Notes = append(v.Notes, "no spare: "+dr.spareNote)
	}
	inst := dr.inst
	if inst != nil && !inst.gone() {
		v.PID = inst.proc.PID
	}
	clients := dr.clientList()
	v.Kept = dr.keptView()
	v.NAT = dr.natView()
	v.Disks = slices.Clone(v.Disks)
	for i := range v.Disks {
		if v.Socket {
			v.Disks[i].Socket = dr.d.portalSocket(dr.name(), v.Disks[i].ID)
		}
		v.Disks[i].Errors, v.Disks[i].LastError = dr.diskErrors.of(v.Disks[i].ID)
		for _, b := range dr.backings {
			if b.id == v.Disks[i].ID {
				v.Disks[i].Bytes = b.size
			}
		}
	}
	v.Ports = slices.Clone(v.Ports)
	for i := range v.Ports {
		v.Ports[i].Socket = dr.d.portalSocket(dr.name(), v.Ports[i].Name)
	}
	dr.mu.Unlock()
	for _, c := range clients {
		v.Clients = append(v.Clients, c.binding(inst))
	}
	return v
}

// logsOf returns the console logs that hold something, older first.
func (d *Daemon) logsOf(name string) []string {
	type log struct {
		path string
		at   time.Time
	}
	var logs []log
	for slot := range slots {
		for _, p := range d.logPaths(name, slot) {
			if st, err := os.Stat(p); err == nil && st.Size() > 0 {
				logs = append(logs, log{p, st.ModTime()})
			}
		}
	}
	slices.SortStableFunc(logs, func(a, b log) int { return a.at.Compare(b.at) })
	paths := []string{}
	for _, l := range logs {
		paths = append(paths, l.path)
	}
	return paths
}
