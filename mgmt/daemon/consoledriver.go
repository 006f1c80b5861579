package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/grailos/grail/drivervms/console"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
)

// consoleName is the console driver that graild makes by itself; when the name is taken, it has a number.
const consoleName = "con"

// Defaults and bounds of what a console driver keeps.
const (
	defaultKeep      = 100
	defaultKeepBytes = 256 << 20
	maxKeep          = 10_000
	// consoleHeartbeatMs is longer than that of others: nobody waits for a log, and the driver rests between two looks.
	consoleHeartbeatMs = 200
)

// checkConsole refuses what a console driver cannot be, and fills in what was left out.
func checkConsole(c *api.DriverConfig) error {
	if len(c.Disks)+len(c.Ports) > 0 || c.Uplink != "" || c.Socket {
		return api.Errorf(api.Invalid, "a console driver has neither disks nor ports")
	}
	k := api.ConsoleConfig{LogBytes: console.DefaultLog, Rate: console.DefaultRate, Keep: defaultKeep, KeepBytes: defaultKeepBytes}
	if given := c.Console; given != nil {
		set := func(to *uint64, v uint64) {
			if v > 0 {
				*to = v
			}
		}
		set(&k.LogBytes, given.LogBytes)
		set(&k.Rate, given.Rate)
		set(&k.KeepBytes, given.KeepBytes)
		if given.Keep > 0 {
			k.Keep = given.Keep
		}
	}
	c.Console = &k
	if err := console.CheckLog(k.LogBytes); err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	if err := console.CheckRate(k.Rate); err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	if k.Keep > maxKeep {
		return api.Errorf(api.Invalid, "%d logs are too many; give at most %d", k.Keep, maxKeep)
	}
	return nil
}

func consoleProgram() error {
	_, err := place.Program("drivers/" + typeConsole)
	return err
}

// consoleDriverName returns the name of the console driver, "" if there is none. The caller holds d.mu.
func (d *Daemon) consoleDriverName() string {
	for name, dr := range d.drivers {
		if dr.rec.Config.Type == typeConsole && !dr.isStopped() {
			return name
		}
	}
	return ""
}

// consoleDriver returns the console driver, when there is one. With create it makes one if there is none.
func (d *Daemon) consoleDriver(ctx context.Context, create bool) (*driver, error) {
	for {
		d.mu.Lock()
		found := d.drivers[d.consoleDriverName()]
		changed := d.consolesChanged
		if found == nil && create && (d.makingConsole || d.noConsoles) {
			create = false // somebody else does it, or it is too late for that
		} else if found == nil && create {
			d.makingConsole = true
		}
		d.mu.Unlock()
		switch {
		case found != nil:
			return found, nil
		case create:
			create = false
			err := d.makeConsole(ctx)
			d.mu.Lock()
			d.makingConsole = false
			d.mu.Unlock()
			if err != nil {
				d.log.Error("no console driver; what VMs print is kept in memory only", "error", err)
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("there is no console driver: %w", ctx.Err())
		}
	}
}

// makeConsole makes the console driver that everybody has who makes none.
func (d *Daemon) makeConsole(ctx context.Context) error {
	for i := range 10 {
		name := fmt.Sprintf("%s%d", consoleName, i)
		d.mu.Lock()
		taken := d.taken(name) != nil
		d.mu.Unlock()
		if taken {
			continue
		}
		return d.CreateDriver(ctx, api.DriverConfig{Type: typeConsole, Name: name, MemoryBytes: console.MinMemory, Spares: new(0), Auto: true})
	}
	return fmt.Errorf("the names %s0 to %s9 are taken", consoleName, consoleName)
}

// consoleMade tells those who wait for a console driver to look again.
func (d *Daemon) consoleMade() {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.consolesChanged)
	d.consolesChanged = make(chan struct{})
}

// endIdleConsoles ends console drivers that graild has made and that nobody needs: when graild ends, they shall not be what it leaves behind.
func (d *Daemon) endIdleConsoles() {
	d.mu.Lock()
	d.noConsoles = true
	d.mu.Unlock()
	for until := time.Now().Add(time.Second); d.consolesUnsettled() && time.Now().Before(until); {
		time.Sleep(lockPause)
	}
	for _, v := range d.Drivers() {
		if v.Auto && v.Type == typeConsole && len(v.Clients) == 0 {
			if err := d.RemoveDriver(v.Name, false); err != nil {
				d.log.Warn("remove", "driver", v.Name, "error", err)
			}
		}
	}
}

// consolesUnsettled reports whether a console driver is being made, or no run is left that it is needed for, but consoles of some that have ended.
func (d *Daemon) consolesUnsettled() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range d.outputs {
		o.hasten()
		select {
		case <-o.ended:
		default:
			return d.makingConsole
		}
	}
	return d.makingConsole || len(d.outputs) > 0 && d.consoleDriverName() != ""
}

// isStopped reports whether the driver has ended for good.
func (dr *driver) isStopped() bool {
	select {
	case <-dr.stopped:
		return true
	default:
		return false
	}
}
