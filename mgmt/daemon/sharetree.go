package daemon

import (
	"strings"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/mgmt/tenant"
)

// treeShare returns what the tree of reservations says of a VM that uses a driver: its own part, and the tenants that it is in as groups. Every tenant is a
// group, also one of which nothing was said: what it gets is the same however many VMs it has.
func (dm *domains) treeShare(vm, driver, kind string) (cfg share.Config) {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	key := tenant.Key{Kind: tenant.VM, Name: vm}
	s, ok := dm.tree.Share(key)
	if !ok {
		return cfg
	}
	cfg.Limits = deviceLimits(s.Devices[driver], kind)
	path := ""
	for name := range strings.SplitSeq(string(dm.tree.Parent(key)), "/") {
		if name == "" {
			break // the host's own
		}
		path += "/" + name // which no group has that somebody named
		s, _ := dm.tree.Share(tenant.Of(tenant.Path(path[1:])))
		cfg.Groups = append(cfg.Groups, share.Group{Name: path, Limits: deviceLimits(s.Devices[driver], kind)})
	}
	return cfg
}

// deviceLimits returns a part in a driver as the driver counts: what a net driver calls operations are frames.
func deviceLimits(d tenant.Device, kind string) share.Limits {
	ops := d.Ops
	if kind == typeNet {
		ops = d.Packets
	}
	rate := func(n int64) uint64 { return uint64(min(n, share.MaxRate)) }
	return share.Limits{
		Weight: uint32(max(ops.Weight, d.Bytes.Weight)),
		OpsCap: rate(ops.Cap), BytesCap: rate(d.Bytes.Cap), OpsGuarantee: rate(ops.Guarantee), BytesGuarantee: rate(d.Bytes.Guarantee),
	}
}

// applyDeviceShares tells the drivers that some shares name what their clients get by now.
func (d *Daemon) applyDeviceShares(shares ...tenant.Share) {
	named := map[string]bool{}
	for _, s := range shares {
		for name := range s.Devices {
			named[name] = true
		}
	}
	for name := range named {
		if dr, err := d.driver(name); err == nil {
			dr.shareAgain()
		}
	}
}
