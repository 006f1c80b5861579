package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/store"
	"github.com/grailos/grail/mgmt/tenant"
)

func (d *Daemon) tenantRoutes(route func(string, func(*http.Request) (any, error))) {
	route("GET /v1/tenants", func(*http.Request) (any, error) { return d.Tenants(tenant.Root) })
	route("POST /v1/tenants", func(r *http.Request) (any, error) {
		var req api.CreateTenant
		if err := decode(r, &req); err != nil {
			return nil, err
		}
		p, err := d.CreateTenant(req)
		if err != nil {
			return nil, err
		}
		return d.Tenants(p)
	})
	one := func(f func(tenant.Path, *http.Request) error) func(*http.Request) (any, error) {
		return func(r *http.Request) (any, error) {
			p, err := tenant.ParsePath(r.PathValue("path"))
			if err != nil {
				return nil, api.Errorf(api.Invalid, "%v", err)
			}
			if err := f(p, r); err != nil || r.Method == http.MethodDelete {
				return struct{}{}, err
			}
			return d.Tenants(p)
		}
	}
	route("GET /v1/tenants/{path...}", one(func(tenant.Path, *http.Request) error { return nil }))
	route("PATCH /v1/tenants/{path...}", one(func(p tenant.Path, r *http.Request) error {
		var req api.SetShare
		if err := decode(r, &req); err != nil {
			return err
		}
		return d.SetTenant(p, req)
	}))
	route("DELETE /v1/tenants/{path...}", one(func(p tenant.Path, _ *http.Request) error { return d.RemoveTenant(p) }))
}

// checkShare refuses a share that nothing but a VM can have, or nobody.
func checkShare(s *tenant.Share, vm bool) error {
	if err := s.Check(runtime.NumCPU()); err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	if s.CPU.RealTime != nil && !vm {
		return api.Errorf(api.Invalid, "a real-time budget is a VM's; give the tenant a CPU guarantee, of which its VMs' budgets are part")
	}
	for name, dev := range s.Devices {
		if dev.CPU != 0 && !vm {
			return api.Errorf(api.Invalid, "driver %s: only a VM's guarantee of processor time can be given to a driver; give it with grailctl set VM", name)
		}
	}
	return nil
}

// CreateTenant makes a tenant and returns when that is on disk.
func (d *Daemon) CreateTenant(req api.CreateTenant) (tenant.Path, error) {
	p, err := tenant.ParsePath(req.Path)
	if err != nil {
		return p, api.Errorf(api.Invalid, "%v", err)
	}
	if p == tenant.Root {
		return p, api.Errorf(api.Exists, "the host is there already; change what it gives away with grailctl tenant set /")
	}
	if err := checkShare(&req.Share, false); err != nil {
		return p, err
	}
	dm := d.domains
	dm.mu.Lock()
	defer dm.mu.Unlock()
	if err := dm.tree.Add(p.Parent(), tenant.Of(p), req.Share); err != nil {
		return p, asAPI(err)
	}
	rec := &store.Tenant{Path: p, Share: req.Share, Created: time.Now()}
	if err := d.store.PutTenant(rec); err != nil {
		_ = dm.tree.Remove(tenant.Of(p))
		return p, err
	}
	dm.recs[p] = rec
	return p, nil
}

// merge returns a share with the fields of a JSON object in place of its own.
func merge(s tenant.Share, patch json.RawMessage) (tenant.Share, error) {
	s.Devices = maps.Clone(s.Devices)
	if rt := s.CPU.RealTime; rt != nil {
		copied := *rt
		s.CPU.RealTime = &copied
	}
	if len(patch) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(patch, &s); err != nil {
		return s, api.Errorf(api.Invalid, "share: %v", err)
	}
	maps.DeleteFunc(s.Devices, func(_ string, dev tenant.Device) bool { return dev == tenant.Device{} })
	return s, nil
}

// SetTenant changes what a tenant or the host owns, for VMs that run at once, and returns when that is on disk.
func (d *Daemon) SetTenant(p tenant.Path, req api.SetShare) error {
	before, after, err := d.setTenant(p, req)
	if err == nil {
		d.applyDeviceShares(before, after)
	}
	return err
}

func (d *Daemon) setTenant(p tenant.Path, req api.SetShare) (before, after tenant.Share, err error) {
	dm := d.domains
	dm.mu.Lock()
	defer dm.mu.Unlock()
	old := dm.recs[p]
	if old == nil {
		return before, after, asAPI(fmt.Errorf("%v %w", tenant.Of(p), tenant.ErrMissing))
	}
	rec := *old
	if rec.Share, err = merge(old.Share, req.Share); err != nil {
		return before, after, err
	}
	if rec.Own, err = merge(old.Own, req.Own); err != nil {
		return before, after, err
	}
	if err := checkShare(&rec.Share, false); err != nil {
		return before, after, err
	}
	if err := checkShare(&rec.Own, false); err != nil {
		return before, after, err
	}
	if p != tenant.Root && len(req.Own) > 0 {
		return before, after, api.Errorf(api.Invalid, "only the host has needs of its own; give / in place of %s", p)
	}
	if err := dm.checkMemoryLimit(p, rec.Share.Memory.Limit); err != nil {
		return before, after, err
	}
	undo, err := dm.become(p, &rec)
	if err != nil {
		return before, after, asAPI(err)
	}
	if err := d.store.PutTenant(&rec); err != nil {
		undo()
		return before, after, err
	}
	dm.recs[p] = &rec
	delete(dm.notes, tenant.Of(p))
	dm.sync()
	return old.Share, rec.Share, nil
}

// checkMemoryLimit refuses a bound of memory below what is used. The caller holds dm.mu.
func (dm *domains) checkMemoryLimit(p tenant.Path, limit int64) error {
	group := dm.groups[tenant.Of(p)]
	if limit == 0 || group == "" {
		return nil
	}
	if used, err := dm.fence.MemoryUsed(group); err == nil && int64(used) > limit {
		return api.Errorf(api.Refused, "tenant %s cannot be limited to %s of memory: its VMs use %s now; stop some, or give it more", p,
			tenant.MemoryBytes.Format(limit), tenant.MemoryBytes.Format(int64(used)))
	}
	return nil
}

// become changes the tree. The caller holds dm.mu.
func (dm *domains) become(p tenant.Path, rec *store.Tenant) (undo func(), err error) {
	key := tenant.Of(p)
	before, _ := dm.tree.Share(key)
	if p != tenant.Root {
		return func() { _ = dm.tree.Set(key, before) }, dm.tree.Set(key, rec.Share)
	}
	capacity, own := hostShare()
	ownBefore, _ := dm.tree.Share(ownKey)
	undo = func() {
		_ = dm.tree.Set(ownKey, tenant.Share{})
		_ = dm.tree.Set(key, before)
		_ = dm.tree.Set(ownKey, ownBefore)
	}
	own, share := overlay(own, rec.Own), overlay(capacity, rec.Share)
	if share.CPU.Guarantee > capacity.CPU.Guarantee {
		return nil, fmt.Errorf("the host cannot give away %v; it has %v", share.CPU.Guarantee, capacity.CPU.Guarantee)
	}
	if share.Memory.Reserved > capacity.Memory.Reserved {
		return nil, fmt.Errorf("the host cannot give away memory of %s; it has %s",
			tenant.MemoryBytes.Format(share.Memory.Reserved), tenant.MemoryBytes.Format(capacity.Memory.Reserved))
	}
	// What the host needs goes first, so that neither stands in the other's way for longer than it must.
	_ = dm.tree.Set(ownKey, tenant.Share{})
	if err = dm.tree.Set(key, share); err == nil {
		err = dm.tree.Set(ownKey, own)
	}
	if err != nil {
		undo()
	}
	return undo, err
}

// RemoveTenant forgets a tenant that has no sub-tenants, VMs and drivers, and returns when that is on disk.
func (d *Daemon) RemoveTenant(p tenant.Path) error {
	if p == tenant.Root {
		return api.Errorf(api.Invalid, "the host cannot be removed")
	}
	var users []string
	d.mu.Lock()
	for _, name := range slices.Sorted(maps.Keys(d.vms)) {
		v := d.vms[name]
		v.mu.Lock()
		if v.rec.Config.Tenant == string(p) {
			users = append(users, fmt.Sprintf("VM %s (%s)", name, v.rec.State))
		}
		v.mu.Unlock()
	}
	for _, name := range slices.Sorted(maps.Keys(d.drivers)) {
		if d.drivers[name].rec.Config.Tenant == string(p) {
			users = append(users, "driver "+name)
		}
	}
	d.mu.Unlock()
	if len(users) > 0 {
		return api.Errorf(api.Busy, "tenant %s has %s; remove them first, with grailctl rm or grailctl driver rm", p, strings.Join(users, ", "))
	}
	dm := d.domains
	dm.mu.Lock()
	defer dm.mu.Unlock()
	key := tenant.Of(p)
	parent := dm.tree.Parent(key)
	share, _ := dm.tree.Share(key)
	if err := dm.tree.Remove(key); err != nil {
		return asAPI(err)
	}
	if err := d.store.DeleteTenant(p); err != nil {
		_ = dm.tree.Add(parent, key, share)
		return err
	}
	delete(dm.recs, p)
	delete(dm.notes, key)
	dm.sync()
	return nil
}

// Tenants lists the tree of reservations from a tenant down, each node after its parent.
func (d *Daemon) Tenants(p tenant.Path) ([]api.Domain, error) {
	dm := d.domains
	dm.mu.Lock()
	defer dm.mu.Unlock()
	if _, ok := dm.tree.Share(tenant.Of(p)); !ok {
		return nil, asAPI(fmt.Errorf("%v %w", tenant.Of(p), tenant.ErrMissing))
	}
	due := map[tenant.Key]tenant.Entitled{}
	for _, e := range dm.tree.Entitlements() {
		due[e.Key] = e
	}
	var list []api.Domain
	var walk func(key tenant.Key)
	walk = func(key tenant.Key) {
		list = append(list, dm.view(key, due[key]))
		for _, k := range dm.tree.Children(key) {
			walk(k)
		}
	}
	walk(tenant.Of(p))
	return list, nil
}

// view describes a node. The caller holds dm.mu.
func (dm *domains) view(key tenant.Key, e tenant.Entitled) api.Domain {
	v := api.Domain{Kind: key.Kind, Name: key.Name, Live: e.Live, Due: e.Milli, Notes: slices.Clone(dm.notes[key])}
	v.Parent = string(dm.tree.Parent(key))
	v.Share, _ = dm.tree.Share(key)
	v.Held = dm.tree.HeldAll(key)
	if key == tenant.HostKey {
		v.Due, v.Live = v.Share.CPU.Guarantee, len(dm.groups) > 0
	}
	if r := dm.recs[tenant.Path(key.Name)]; key.Kind == tenant.Tenant && r != nil {
		v.Created = r.Created
	}
	if v.Live {
		if u, err := dm.fence.Usage(dm.groupOf(key)); err == nil {
			v.CPU = &api.CPUUsage{UsedNs: u.UsedNs, ThrottledNs: u.ThrottledNs, Time: time.Now()}
		}
		if n, err := dm.fence.MemoryUsed(dm.groupOf(key)); err == nil {
			v.MemoryUsed = &n
		}
	}
	return v
}

// setVM changes the share of a VM.
func (d *Daemon) setVM(r *http.Request) (any, error) {
	var req api.SetShare
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	v, err := d.vm(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if err := v.set(req); err != nil {
		return nil, err
	}
	return d.VM(v.name())
}

// set changes the VM's share, at once if it runs, and returns when that is on disk.
func (v *vm) set(req api.SetShare) error {
	if len(req.Own) > 0 {
		return api.Errorf(api.Invalid, "only the host has needs of its own")
	}
	v.op.Lock()
	defer v.op.Unlock()
	v.mu.Lock()
	rec, inst := v.rec, v.inst
	v.mu.Unlock()
	now := rec.Config.Share
	now.CPU.Cap = shareOf(&rec.Config).CPU.Cap
	now.Memory.Limit = int64(rec.Config.MemoryLimit)
	s, err := merge(now, req.Share)
	if err != nil {
		return err
	}
	rec.Config.CPU = float64(s.CPU.Cap) / 1000
	rec.Config.Share = s
	rec.Config.Share.CPU.Cap = 0 // that is Config.CPU
	limit := memoryLimit(&rec.Config)
	rec.Config.MemoryLimit, rec.Config.Share.Memory.Limit = uint64(max(s.Memory.Limit, 0)), 0
	if err := checkVM(&rec.Config); err != nil {
		return err
	}
	reserved := [2]uint64{uint64(now.Memory.Reserved), uint64(s.Memory.Reserved)}
	if inst != nil && inst.engine != hv.EngineProcess && reserved[1] > reserved[0] {
		p, err := v.d.promise(context.Background(), v.key(), tenant.Path(rec.Config.Tenant), reserved[1]-reserved[0])
		if err != nil {
			return err
		}
		defer v.d.room.keep(p, 0)
	}
	if inst != nil && memoryLimit(&rec.Config) < limit {
		v.d.domains.hold(v.key(), limit) // until the guest keeps to less
	}
	before, running, err := v.apply(rec.Config)
	if err != nil {
		return err
	}
	if running && inst != nil {
		v.relimit(inst, before.CPU, shareOf(&rec.Config).CPU)
		v.d.applyDeviceShares(before, s)
		if reserved[0] != reserved[1] {
			if err := v.reserve(inst, reserved[1]); err != nil {
				return err
			}
		}
		if memoryLimit(&rec.Config) != limit {
			_, err := v.rebound(inst, rec.Config)
			return err
		}
	}
	return nil
}

// apply makes a configuration the VM's, which then differs from its own in the share alone, and returns the share before if it runs.
func (v *vm) apply(cfg api.VMConfig) (before tenant.Share, running bool, err error) {
	dm := v.d.domains
	dm.mu.Lock()
	defer dm.mu.Unlock()
	before, running = dm.tree.Share(v.key())
	if running {
		if err := dm.tree.Set(v.key(), shareOf(&cfg)); err != nil {
			return before, running, asAPI(err)
		}
	}
	v.mu.Lock()
	old := v.rec.Config
	v.rec.Config = cfg
	rec := v.rec
	v.mu.Unlock()
	if err := v.d.store.PutVM(&rec); err != nil {
		v.mu.Lock()
		v.rec.Config = old
		v.mu.Unlock()
		if running {
			_ = dm.tree.Set(v.key(), before)
		}
		return before, running, err
	}
	if running {
		dm.sync()
	}
	return before, running, nil
}
