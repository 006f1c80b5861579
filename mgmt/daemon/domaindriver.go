package daemon

import (
	"context"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/tenant"
)

// checkTenant refuses a tenant that is not there.
func (d *Daemon) checkTenant(name string) error {
	p, err := tenant.ParsePath(name)
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	dm := d.domains
	dm.mu.Lock()
	defer dm.mu.Unlock()
	if _, ok := dm.tree.Share(tenant.Of(p)); !ok {
		return api.Errorf(api.NotFound, "there is no tenant %q; make it with grailctl tenant create %s", name, name)
	}
	return nil
}

// key names the driver in the tree of reservations.
func (dr *driver) key() tenant.Key {
	if ofHost(&dr.rec.Config) {
		return ownKey
	}
	return tenant.Key{Kind: tenant.Driver, Name: dr.name()}
}

// admit makes room for the driver's reservation, or says why there is none.
func (dr *driver) admit() error {
	cfg := &dr.rec.Config
	if ofHost(cfg) {
		dr.d.domains.hostProcess(1)
		return nil
	}
	if err := dr.d.checkTenant(cfg.Tenant); err != nil {
		return err
	}
	s := driverShare(cfg)
	if err := checkShare(&s, false); err != nil {
		return err
	}
	return dr.d.domains.admit(tenant.Path(cfg.Tenant), dr.key(), s)
}

// askForRoom has VMs that use more than what is reserved for them make room for a driver that is about to be made, where the host has none, until done is called. Its memory is not prefaulted: what the host
// still lacks then, the driver may never need.
func (dr *driver) askForRoom(ctx context.Context) (done func()) {
	cfg := &dr.rec.Config
	if ofHost(cfg) {
		return func() {}
	}
	p, err := dr.d.promise(ctx, dr.key(), tenant.Path(cfg.Tenant), cfg.MemoryBytes)
	if err != nil {
		dr.d.log.Warn("little memory for a driver", "driver", dr.name(), "why", err)
		return func() {}
	}
	return func() { dr.d.room.keep(p, 0) }
}

// resize changes the driver's reservation to that of another configuration.
func (dr *driver) resize(c *api.DriverConfig) error {
	if ofHost(c) {
		return nil
	}
	return dr.d.domains.resize(dr.key(), driverShare(c))
}

// giveBack gives the driver's reservation back.
func (dr *driver) giveBack() {
	if ofHost(&dr.rec.Config) {
		dr.d.domains.hostProcess(-1)
		return
	}
	dr.d.domains.dismiss(dr.key())
}

// join puts a process of the driver into its group. That takes some milliseconds, for which no recovery waits.
func (dr *driver) join(pid int) {
	dr.d.background.Go(func() {
		notes := dr.d.domains.join(dr.key(), pid)
		dr.mu.Lock()
		defer dr.mu.Unlock()
		dr.rec.Notes = notes
	})
}

// settleDomains gives everything that was adopted its place in the tree, and makes the cgroups agree with it.
func (d *Daemon) settleDomains() {
	type member struct {
		key tenant.Key
		pid int
	}
	var members []member
	for _, dr := range d.drivers {
		cfg := &dr.rec.Config
		if ofHost(cfg) {
			d.domains.hostProcess(1)
		} else {
			d.domains.adopted(tenant.Path(cfg.Tenant), dr.key(), driverShare(cfg))
		}
		if dr.inst != nil {
			members = append(members, member{dr.key(), dr.inst.proc.PID})
		}
		if dr.adopted != nil {
			members = append(members, member{dr.key(), dr.adopted.pid})
		}
	}
	for _, v := range d.vms {
		if v.inst != nil {
			d.domains.adopted(tenant.Path(v.rec.Config.Tenant), v.key(), shareOf(&v.rec.Config))
			members = append(members, member{v.key(), v.inst.proc.PID})
		}
	}
	for _, m := range members {
		d.domains.fence.Of(m.pid) // where the groups are, if the predecessor was started in another place
	}
	d.domains.settle()
	for _, m := range members {
		d.domains.join(m.key, m.pid)
	}
	d.domains.settle() // what the processes have left
}
