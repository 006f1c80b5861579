package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/size"
	"github.com/grailos/grail/mgmt/tenant"
)

// overran says so in the report of a VM that the host's kernel has ended because it used more memory than its fence lets it. It is called before the fence is gone.
func (v *vm) overran(r *hv.Report) {
	switch {
	case r.Cause == hv.CauseKilled, r.Cause == hv.CauseEngine, r.Cause == hv.CauseSetup:
	case r.Cause == hv.CauseSignal && r.Signal == int(unix.SIGKILL):
	default:
		return
	}
	dm := v.d.domains
	dm.mu.Lock()
	group := dm.groups[v.key()]
	limit, _ := dm.fence.Limits(group)
	kills := uint64(0)
	if group != "" {
		kills = dm.fence.MemoryKills(group)
	}
	dm.mu.Unlock()
	if kills == 0 {
		return
	}
	r.Cause = hv.CauseMemory
	r.Message = fmt.Sprintf("the VM's processes used more than the %s that they may, %s for the guest and %s for the VMM; the host's kernel ended them",
		tenant.MemoryBytes.Format(int64(limit.MemoryBytes)), tenant.MemoryBytes.Format(int64(limit.MemoryBytes-min(limit.MemoryBytes, vmmOverhead))), size.Format(vmmOverhead))
}
