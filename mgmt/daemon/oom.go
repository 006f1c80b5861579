package daemon

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/tenant"
)

// groupIn returns the path of the cgroup of a VM or driver in a tenant, whether or not it is in the tree.
func (dm *domains) groupIn(parent tenant.Path, key tenant.Key) string {
	prefix := "v."
	if key.Kind == tenant.Driver {
		prefix = "d."
	}
	return path.Join(dm.groupOf(tenant.Of(parent)), prefix+key.Name)
}

// arrives takes note of what has become of earlier processes of a group. The caller holds dm.mu.
func (dm *domains) arrives(group string) {
	if n := dm.fence.OOMKills(group); n > 0 {
		dm.killed[group] = n
	} else {
		delete(dm.killed, group)
	}
}

// blame makes the report of a run that nobody asked to end say that the kernel killed its process for want of memory, if it has. vmm is
// what its VMM may use, in bytes.
func (dm *domains) blame(parent tenant.Path, key tenant.Key, vmm int64, r *hv.Report) {
	switch {
	case r.Cause == hv.CauseKilled, r.Cause == hv.CauseEngine, r.Cause == hv.CauseSetup, r.Cause == hv.CauseSignal && r.Signal == int(unix.SIGKILL):
	default:
		return
	}
	dm.mu.Lock()
	defer dm.mu.Unlock()
	group := dm.groupIn(parent, key)
	n := dm.fence.OOMKills(group)
	if n <= dm.killed[group] {
		return
	}
	dm.killed[group] = n
	r.Cause, r.Signal = hv.CauseMemory, 0
	full, limit, ok := dm.fence.Full(group)
	switch most := tenant.MemoryBytes.Format(int64(limit)); {
	case !ok:
		r.Message = "the host's kernel ended the VM's processes, since there was no memory left"
	case full == group:
		r.Message = fmt.Sprintf("the VM's processes used more than the %s that they may, %s for the guest and %s for the VMM; the host's kernel ended them", most,
			tenant.MemoryBytes.Format(int64(limit)-vmm), tenant.MemoryBytes.Format(vmm))
	default:
		r.Message = fmt.Sprintf("the host's kernel ended the VM's processes, since all that runs %s may use %s together", ofGroup(full), most)
	}
}

// ofGroup names the node that a group is of.
func ofGroup(group string) string {
	if t, ok := strings.CutPrefix(group, "t."); ok {
		return "for tenant " + strings.ReplaceAll(t, "/t.", "/")
	}
	return "on this host"
}
