package daemon

import (
	"fmt"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/fence"
	"github.com/grailos/grail/mgmt/tenant"
)

// throttle has the VMM itself keep to the VM's cap where no cgroup can, and says so.
func (v *vm) throttle(inst *instance, limit tenant.Milli) (note string) {
	why := v.d.domains.fence.Can(fence.CPU)
	if why == nil {
		return ""
	}
	_, fds, err := inst.call(hv.Request{Op: hv.OpLimit, Milli: int(limit)}, callTimeout)
	closeFDs(fds)
	switch {
	case limit == 0 || inst.gone():
		return ""
	case err != nil:
		return fmt.Sprintf("the CPU cap of %v is not enforced: %v; %v", limit, why, err)
	}
	return fmt.Sprintf("the CPU cap of %v is kept by the VM's own process, which the host does not watch: %v", limit, why)
}

// limit gives a VM that has just started what the cgroups do not give it.
func (v *vm) limit(inst *instance, cfg api.VMConfig) {
	if limit := shareOf(&cfg).CPU.Cap; limit > 0 {
		if note := v.throttle(inst, limit); note != "" {
			v.addNote(note)
		}
	}
	if rt := cfg.Share.CPU.RealTime; rt != nil {
		v.d.background.Go(func() { v.realTime(inst, rt) })
	}
}

// relimit does so for a VM that runs, when its share has changed from another one.
func (v *vm) relimit(inst *instance, was, now tenant.CPU) {
	if was.Cap != now.Cap {
		if note := v.throttle(inst, now.Cap); note != "" {
			v.addNote(note)
		}
	}
	if was.RealTime != now.RealTime && (was.RealTime == nil || now.RealTime == nil || *was.RealTime != *now.RealTime) {
		v.realTime(inst, now.RealTime)
	}
}
