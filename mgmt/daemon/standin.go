package daemon

import (
	"errors"
	"os"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/api"
)

// roleStandIn marks a driver VM without devices, which fails the requests of a driver's clients while the driver does not serve (policy fail). It is
// attached to them as any instance is, so that graild touches no ring.
const roleStandIn role = "standin"

// settled is how long an instance must have served for the driver to count as serving: one that dies at once serves nobody.
const settled = time.Second

// standInPause is the time between two attempts to start a stand-in.
const standInPause = time.Second

// leave takes note that no instance of the driver is there that could touch its clients.
func (dr *driver) leave() {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	dr.down = true
	now := time.Now()
	if dr.downSince.IsZero() || dr.readySince.After(dr.downSince) && now.Sub(dr.readySince) >= settled {
		dr.downSince = now
	}
	dr.set(dr.state, dr.message)
}

// relieve is the opposite of leave: it returns when nobody else touches the clients, so that an instance can be attached to them.
func (dr *driver) relieve() {
	dr.mu.Lock()
	was := dr.standIn
	dr.down, dr.standIn = false, nil
	dr.mu.Unlock()
	if was != nil {
		was.end()
	}
	// The calls by which the clients are just being attached to it end with its process.
	dr.standing.Lock()
	defer dr.standing.Unlock()
	if was == nil {
		return
	}
	dr.lose(was)
	dr.d.log.Info("driver stops failing its clients' requests", "driver", dr.name())
}

// lose takes note that an instance serves nobody any more.
func (dr *driver) lose(inst *driverInstance) {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	for _, c := range dr.clients {
		c.mu.Lock()
		if c.on == inst {
			c.on = nil
		}
		c.mu.Unlock()
	}
}

// keepStandIn has the clients' requests fail when the driver has not served for as long as policy fail says. It returns when the driver is to stop, or
// graild ends; then the stand-in stays.
func (dr *driver) keepStandIn() {
	var notBefore time.Time
	for {
		dr.mu.Lock()
		c, changed := dr.rec.Config, dr.changed
		var due <-chan time.Time
		if dr.down && c.Policy == api.PolicyFail && len(dr.clients) > 0 {
			when := dr.downSince.Add(fromMs(c.FailAfterMs))
			if when.Before(notBefore) {
				when = notBefore
			}
			due = time.After(time.Until(when))
		}
		dr.mu.Unlock()
		select {
		case <-due:
			if err := dr.standInFor(); err != nil {
				dr.d.log.Error("the requests of a driver's clients cannot be failed", "driver", dr.name(), "error", err, "next", standInPause)
			}
			notBefore = time.Now().Add(standInPause)
		case <-changed:
		case <-dr.stop:
			return
		case <-dr.d.closing:
			return
		}
	}
}

// standInFor starts a stand-in, attaches it to all clients, and returns when it has ended, or is not wanted any more.
func (dr *driver) standInFor() error {
	inst, err := dr.d.launchStandIn(dr)
	if err != nil {
		return err
	}
	leave := false
	defer func() {
		if !leave {
			inst.end()
			inst.close()
			_ = os.Remove(inst.report)
		}
		inst.closePages()
	}()
	if _, err := inst.waitReady(startTimeout); err != nil {
		return err
	}
	if !dr.beginStandIn(inst) {
		return nil
	}
	defer dr.monitor(inst, nil)()
	for {
		dr.mu.Lock()
		changed, wanted := dr.changed, dr.standIn == inst && dr.rec.Config.Policy == api.PolicyFail
		dr.mu.Unlock()
		select {
		case <-inst.ended:
			wanted = false
		case <-inst.hung:
			wanted = false
		case <-dr.stop:
			wanted = false
		default:
		}
		if !wanted {
			inst.end()
			dr.mu.Lock()
			mine := dr.standIn == inst
			if mine {
				dr.standIn = nil
				dr.set(dr.state, dr.message)
			}
			dr.mu.Unlock()
			if mine {
				dr.lose(inst)
			}
			return nil
		}
		select {
		case <-changed:
		case <-inst.ended:
		case <-inst.hung:
		case <-dr.stop:
		case <-dr.d.closing:
			leave = true
			return nil
		}
	}
}

// beginStandIn attaches a stand-in to all clients, unless the driver's next instance is about to be. Clients that come later attach themselves.
func (dr *driver) beginStandIn(inst *driverInstance) bool {
	dr.standing.Lock()
	defer dr.standing.Unlock()
	dr.mu.Lock()
	if !dr.down {
		dr.mu.Unlock()
		return false
	}
	dr.standIn = inst
	list, beat := dr.clientList(), fromMs(dr.rec.Config.HeartbeatMs)
	dr.set(dr.state, dr.message)
	dr.mu.Unlock()
	dr.d.log.Warn("driver fails its clients' requests", "driver", dr.name(), "clients", len(list), "why", "policy fail: it has not served for too long")
	dr.breakEpochs(inst)
	for _, c := range list {
		if err := inst.attach(c, beat); errors.Is(err, errAside) {
			dr.attachLater(inst, c)
			continue
		} else if err != nil {
			if inst.gone() {
				break
			}
			dr.d.log.Warn("attach to fail requests", "driver", dr.name(), "client", c.att.Client, "error", err)
			continue
		}
		c.call()
		c.kick()
	}
	return true
}

// launchStandIn starts the installed program of the driver's type in a VM without devices.
func (d *Daemon) launchStandIn(dr *driver) (*driverInstance, error) {
	return d.launchProgram(dr, roleStandIn, dr.nextLaunch(), "", func(_ *driverInstance, l *hv.Launch) error {
		l.Spec.Argv = []string{dr.rec.Config.Type, abi.ArgFail}
		return nil
	})
}

// meanwhile says what the clients see of a driver that does not serve. The caller holds dr.mu.
func (dr *driver) meanwhile() string {
	if dr.rec.Config.Policy == api.PolicyFail {
		return "get errors"
	}
	return "wait"
}
