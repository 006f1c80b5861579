package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/fence"
	"github.com/grailos/grail/mgmt/size"
	"github.com/grailos/grail/mgmt/store"
	"github.com/grailos/grail/mgmt/tenant"
	"github.com/grailos/grail/vcpu/qemu"
)

// domains is the tree of reservations, and the cgroups that enforce it. The cgroups follow the tree; the store has what of it outlives graild.
type domains struct {
	log   *slog.Logger
	fence *fence.Tree

	mu      sync.Mutex
	tree    *tenant.Tree
	recs    map[tenant.Path]*store.Tenant
	groups  map[tenant.Key]string // of the nodes in which something runs
	own     int                   // processes of the host's own needs
	killed  map[string]uint64     // by group: processes that the kernel has killed for want of memory, as far as known
	notes   map[tenant.Key][]string
	applied error                       // of the last sync
	least   uint64                      // weight of the top group by what runs; see plan
	raised  uint64                      // weight of the top group that keeps the guarantees beside the host's processes; see governor
	steered map[tenant.Key]tenant.Milli // caps of those that hold back for now; see governor
	bounds  map[tenant.Key]uint64       // bytes that those may use who were asked for memory; see vm.order
}

// groupPrefix begins the name of each graild's cgroups.
const groupPrefix = "grail-"

// openFence is fence.Open but in tests.
var openFence = fence.Open

// ownKey is the node of the host's own needs.
var ownKey = tenant.Key{Kind: tenant.Own}

// The host's own needs unless somebody says otherwise, in percent of what there is.
const (
	ownPercent    = 5
	ownMemoryMost = 1 << 30
)

// hostShare returns what this host has, and what it needs for itself by default.
func hostShare() (capacity, own tenant.Share) {
	cpus := int64(runtime.NumCPU())
	capacity.CPU.Guarantee = tenant.Milli(cpus * 1000)
	own.CPU.Guarantee = tenant.Milli(cpus * 1000 * ownPercent / 100)
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		capacity.Memory.Reserved = int64(si.Totalram) * int64(si.Unit)
		own.Memory.Reserved = min(capacity.Memory.Reserved*ownPercent/100, ownMemoryMost)
	}
	return capacity, own
}

// openDomains brings up the tree from the store. A reservation that this host cannot keep, because it has less than when it was admitted, stays
// in the store and counts for nothing until it can be kept again; a note says so.
func (d *Daemon) openDomains() error {
	dm := &domains{log: d.log, recs: map[tenant.Path]*store.Tenant{}, groups: map[tenant.Key]string{}, notes: map[tenant.Key][]string{}, bounds: map[tenant.Key]uint64{}}
	recs, err := d.store.Tenants()
	if err != nil {
		return err
	}
	host := &store.Tenant{}
	for _, r := range recs {
		dm.recs[r.Path] = r
		if r.Path == tenant.Root {
			host = r
		}
	}
	dm.recs[tenant.Root] = host
	if dm.tree, err = hostTree(host); err != nil {
		dm.note(tenant.HostKey, err)
		if dm.tree, err = hostTree(&store.Tenant{}); err != nil {
			return err
		}
	}
	for _, r := range recs {
		if r.Path == tenant.Root {
			continue
		}
		if err := dm.restore(r.Path.Parent(), tenant.Of(r.Path), r.Share); err != nil {
			return err
		}
	}
	if os.Getenv("GRAIL_CGROUPS") == "off" {
		dm.fence = fence.None(errors.New("GRAIL_CGROUPS is off"))
	} else {
		dm.fence = openFence(groupPrefix + d.store.ID)
	}
	dm.killed = map[string]uint64{}
	d.domains = dm
	return nil
}

// hostTree returns the tree of this host, as somebody configured it.
func hostTree(r *store.Tenant) (*tenant.Tree, error) {
	capacity, own := hostShare()
	return tenant.New(overlay(capacity, r.Share), overlay(own, r.Own))
}

// overlay returns a share with what another one says in place of its own.
func overlay(s, over tenant.Share) tenant.Share {
	if over.CPU.Guarantee != 0 {
		s.CPU.Guarantee = over.CPU.Guarantee
	}
	if over.Memory.Reserved != 0 {
		s.Memory.Reserved = over.Memory.Reserved
	}
	s.CPU.Cap, s.CPU.Set = over.CPU.Cap, over.CPU.Set
	s.Memory.Limit, s.VMs, s.Threads, s.Devices = over.Memory.Limit, over.VMs, over.Threads, over.Devices
	return s
}

// restore adds a node that was admitted by a predecessor: what cannot be kept any more is left out, and noted.
func (dm *domains) restore(parent tenant.Path, key tenant.Key, s tenant.Share) error {
	err := dm.tree.Add(parent, key, s)
	var refused *tenant.Refused
	if !errors.As(err, &refused) {
		return err
	}
	dm.note(key, err)
	bare := tenant.Share{CPU: tenant.CPU{Cap: s.CPU.Cap, Weight: s.CPU.Weight, Set: s.CPU.Set}, Memory: tenant.Memory{Limit: s.Memory.Limit}}
	return dm.tree.Add(parent, key, bare)
}

func (dm *domains) note(key tenant.Key, err error) {
	dm.log.Warn("a reservation cannot be kept", "domain", key.String(), "error", err)
	dm.notes[key] = append(dm.notes[key], "its reservation cannot be kept on this host any more: "+err.Error())
}

// vmThreads is what a VM claims of a bound on threads unless it has one of its own: for a native VM the bound of its guest, for another the
// threads of its VMM.
const vmThreads = 256

// vmmThreads is how many threads a VMM may have beside those of its guest.
const vmmThreads = 128

// shareOf returns what a VM asks for.
func shareOf(c *api.VMConfig) tenant.Share {
	s := c.Share
	s.CPU.Cap = tenant.Milli(c.CPU*1000 + 0.5)
	s.Memory.Limit, s.Memory.VMM = int64(memoryLimit(c)), vmmMemory
	if c.Personality == api.Linux {
		s.Memory.VMM += qemu.TranslationBytes
	}
	s.VMs = 1
	if s.Threads == 0 {
		s.Threads = vmThreads
	}
	return s
}

// driverCPU is what a driver is guaranteed of the processors unless it was made with something else.
const driverCPU = tenant.Milli(50)

// driverShare returns what a driver asks for: its memory and that of its spares is reserved.
func driverShare(c *api.DriverConfig) tenant.Share {
	s := c.Share
	if s.CPU.Guarantee == 0 {
		s.CPU.Guarantee = driverCPU
	}
	s.Memory.Reserved = int64(c.MemoryBytes)
	if c.Spares != nil {
		s.Memory.Reserved *= int64(1 + *c.Spares)
	}
	return s
}

// ofHost reports whether a driver's reservation is the host's own affair: nobody asked for it.
func ofHost(c *api.DriverConfig) bool { return c.Auto || c.Image != "" }

// admit makes room for a VM or driver that is about to run, or says why there is none.
func (dm *domains) admit(parent tenant.Path, key tenant.Key, s tenant.Share) error {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	if err := dm.tree.Add(parent, key, s); err != nil {
		return asAPI(err)
	}
	dm.tree.SetLive(key, true)
	dm.sync()
	return nil
}

// adopted adds what a predecessor had admitted.
func (dm *domains) adopted(parent tenant.Path, key tenant.Key, s tenant.Share) {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	if _, ok := dm.tree.Share(tenant.Of(parent)); !ok {
		parent = tenant.Root
	}
	if err := dm.restore(parent, key, s); err != nil {
		dm.log.Error("adopt: domain", "domain", key.String(), "error", err)
		return
	}
	dm.tree.SetLive(key, true)
}

// resize changes what a VM or driver that is in the tree asks for.
func (dm *domains) resize(key tenant.Key, s tenant.Share) error {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	if err := dm.tree.Set(key, s); err != nil {
		return asAPI(err)
	}
	dm.sync()
	return nil
}

// dismiss gives the room back. What ran there has ended.
func (dm *domains) dismiss(key tenant.Key) {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	if err := dm.tree.Remove(key); err != nil {
		return
	}
	delete(dm.notes, key)
	delete(dm.bounds, key)
	dm.sync()
}

// hostProcess counts the processes of the host's own needs.
func (dm *domains) hostProcess(delta int) {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	dm.own += delta
	if dm.tree.SetLive(ownKey, dm.own > 0) {
		dm.sync()
	}
}

// groupOf returns the path of a node's cgroup.
func (dm *domains) groupOf(key tenant.Key) string {
	switch key.Kind {
	case tenant.Host:
		return ""
	case tenant.Own:
		return "own"
	case tenant.Tenant:
		return "t." + strings.ReplaceAll(key.Name, "/", "/t.")
	}
	return dm.groupIn(dm.tree.Parent(key), key)
}

// plan returns what the tree says of the cgroups, each group after those above it, and the groups of the nodes in which something runs. The caller holds
// dm.mu.
func (dm *domains) plan() ([]fence.Group, map[tenant.Key]string) {
	list := dm.tree.Entitlements()
	sums := map[tenant.Key]int64{}
	vmms := map[tenant.Key]int64{}      // memory of the VMMs that run, below a tenant
	reserved := map[tenant.Key]uint64{} // memory of those, below a tenant or the host
	for _, e := range list {
		if !e.Live {
			continue
		}
		sums[e.Parent] += int64(e.Milli)
		if e.Key.Kind == tenant.VM {
			s, _ := dm.tree.Share(e.Key)
			reserved[e.Key] = uint64(s.Memory.Reserved)
			reserved[tenant.HostKey] += reserved[e.Key]
			for p := tenant.Path(e.Parent.Name); p != tenant.Root; p = p.Parent() {
				vmms[tenant.Of(p)] += s.Memory.VMM
				reserved[tenant.Of(p)] += reserved[e.Key]
			}
		}
	}
	host, _ := dm.tree.Share(tenant.HostKey)
	// Beside the host's processes all of Grail counts for as much as one of them, unless more is needed to keep the guarantees: in some kernels (seen in
	// 6.18) a process of the host next to a group of a larger weight waits for seconds, and graild is one of them.
	dm.least = fence.BesideHost(1)
	weight := max(dm.least, dm.raised)
	apply := []fence.Group{{Path: "", Limits: fence.Limits{Weight: weight, CapMilli: int64(host.CPU.Cap), CPUs: host.CPU.Set, ReservedBytes: reserved[tenant.HostKey]}}}
	groups := map[tenant.Key]string{}
	caps := map[tenant.Key]tenant.Milli{tenant.HostKey: host.CPU.Cap} // the tightest from the host down
	for _, e := range list {
		if !e.Live {
			continue
		}
		groups[e.Key] = dm.groupOf(e.Key)
		s, _ := dm.tree.Share(e.Key)
		l := fence.Limits{Weight: fence.Parts, CPUs: tenant.FormatSet(e.Set), ReservedBytes: reserved[e.Key]}
		if sum := sums[e.Parent]; sum > 0 {
			l.Weight = max(uint64(int64(e.Milli)*fence.Parts/sum), 1)
		}
		caps[e.Key] = caps[e.Parent]
		for _, c := range []tenant.Milli{s.CPU.Cap, dm.steered[e.Key]} {
			if c > 0 && (caps[e.Key] == 0 || c < caps[e.Key]) {
				caps[e.Key] = c
			}
			if c > 0 {
				l.CapMilli = int64(caps[e.Key])
			}
		}
		switch {
		case e.Key.Kind == tenant.VM:
			l.MemoryBytes = uint64(s.Memory.Limit + s.Memory.VMM)
			if b := dm.bounds[e.Key]; b > 0 {
				l.MemoryBytes = b + uint64(s.Memory.VMM)
			}
			if s.Threads > vmThreads {
				l.Threads = s.Threads + vmmThreads
			} else {
				l.Threads = vmThreads + vmmThreads
			}
		case e.Key.Kind == tenant.Tenant && s.Memory.Limit > 0:
			l.MemoryBytes = uint64(s.Memory.Limit + vmms[e.Key])
		}
		apply = append(apply, fence.Group{Path: groups[e.Key], Limits: l})
	}
	return apply, groups
}

// sync makes the cgroups what the tree says. The caller holds dm.mu.
func (dm *domains) sync() {
	apply, groups := dm.plan()
	if len(groups) > 0 {
		dm.applied = dm.fence.ApplyAll(apply)
	}
	gone := false
	for key, g := range dm.groups {
		if groups[key] == "" {
			gone = true
			_ = dm.fence.Remove(g) // a tenant's, before those below it are: swept below
		}
	}
	dm.groups = groups
	if gone {
		dm.sweep()
	}
}

// sweep removes the groups in which nothing runs. The caller holds dm.mu.
func (dm *domains) sweep() {
	used := map[string]bool{}
	for _, g := range dm.groups {
		used[g] = true
	}
	dm.fence.Sweep(func(group string) bool { return used[group] })
}

// settle makes the cgroups agree with the tree that a new graild has, whatever its predecessor was about to do.
func (dm *domains) settle() {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	dm.sync()
	dm.sweep()
}

// join moves a process that runs for a node into its group, unless it is there already, and says what is not enforced.
func (dm *domains) join(key tenant.Key, pid int) (notes []string) {
	dm.mu.Lock()
	group, s := dm.groups[key], tenant.Share{}
	s, _ = dm.tree.Share(key)
	parent := dm.tree.Parent(key)
	applied := dm.applied
	dm.arrives(group)
	dm.mu.Unlock()
	if err := dm.fence.Add(group, pid); err != nil {
		applied = errors.Join(applied, err)
	}
	say := func(c fence.Controller, what string) {
		err := dm.fence.Can(c)
		if err == nil {
			err = applied
		}
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s: %s", what, strings.ReplaceAll(err.Error(), "\n", "; ")))
		}
	}
	if key.Kind == tenant.VM {
		say(fence.Memory, "no memory fence around the VM's process")
	}
	if s.CPU.Cap > 0 && key.Kind != tenant.VM {
		say(fence.CPU, fmt.Sprintf("the CPU cap of %v is not enforced", s.CPU.Cap))
	}
	if s.CPU.Guarantee > 0 || s.CPU.Weight > 0 || parent != tenant.Root {
		say(fence.CPU, "its part of the processors is not enforced")
	}
	if s.CPU.Set != "" && dm.fence.Can(fence.Set) != nil {
		if err := pin(pid, s.CPU.Set); err != nil {
			say(fence.Set, fmt.Sprintf("the set of processors %s is not enforced (%v)", s.CPU.Set, err))
		}
	}
	return notes
}

// asAPI turns an error of the tree into one for a client.
func asAPI(err error) error {
	var refused *tenant.Refused
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return api.Errorf(api.Refused, "%s", refused.Error())
	case errors.Is(err, tenant.ErrMissing):
		return api.Errorf(api.NotFound, "%v; grailctl tenant ls lists those that there are", err)
	case errors.Is(err, tenant.ErrExists):
		return api.Errorf(api.Exists, "%v", err)
	case errors.Is(err, tenant.ErrInUse):
		return api.Errorf(api.Busy, "%v", err)
	}
	return api.Errorf(api.Invalid, "%v", err)
}

// checkVMShare refuses a share that a VM cannot have.
func checkVMShare(c *api.VMConfig) error {
	p, err := tenant.ParsePath(c.Tenant)
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	c.Tenant = string(p)
	if c.Share.CPU.Cap != 0 || c.Share.Memory.Limit != 0 || c.Share.VMs != 0 {
		return api.Errorf(api.Invalid, "a VM's caps are its cpu, memoryBytes and memoryLimit, and it is one VM")
	}
	if c.MemoryLimit > 0 && c.MemoryLimit < api.MinKeep {
		return api.Errorf(api.Invalid, "a memory limit of %s is too little; give %s at least, or 0 for none but its memory of %s", size.Format(c.MemoryLimit), size.Format(api.MinKeep),
			size.Format(c.MemoryBytes))
	}
	s := shareOf(c)
	return checkShare(&s, true)
}
