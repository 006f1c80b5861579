package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
	"github.com/grailos/grail/mgmt/tenant"
)

// reclaimSlack is how much longer than its deadline an order may take: taking a lot by force takes a while, and so does the end of a Linux VM.
const reclaimSlack = 20 * time.Second

func (d *Daemon) reclaimVM(r *http.Request) (any, error) {
	var req api.ReclaimVM
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	v, err := d.vm(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	// A client that goes away does not undo what it asked for.
	return v.reclaim(context.WithoutCancel(r.Context()), req)
}

// reclaim carries an order of a person out.
func (v *vm) reclaim(ctx context.Context, req api.ReclaimVM) (api.ReclaimedVM, error) {
	none := api.ReclaimedVM{Name: v.name()}
	given := 0
	for _, set := range []bool{req.Take > 0, req.Keep > 0, req.All} {
		if set {
			given++
		}
	}
	if given != 1 {
		return none, api.Errorf(api.Invalid, "say how much to take back, or how much VM %s may keep, or that it may use all again", v.name())
	}
	if req.WithinMs < 0 || req.WithinMs > hv.MaxReclaimMs {
		return none, api.Errorf(api.Invalid, "a guest can have between 0 and %v to give memory back", hv.MaxReclaimMs*time.Millisecond)
	}
	inst, err := v.current()
	if err != nil {
		return none, err
	}
	v.mu.Lock()
	cfg := v.rec.Config
	v.mu.Unlock()
	least := leastKept(&cfg)
	if req.Keep > 0 && req.Keep < least {
		return none, api.Errorf(api.Refused, "VM %s cannot be left with %s: %s", v.name(), size.Format(req.Keep), whyLeast(&cfg))
	}
	limit := memoryLimit(&cfg)
	within := time.Duration(req.WithinMs) * time.Millisecond
	switch {
	case req.All:
		v.lend(false)
		return v.order(ctx, inst, hv.Reclaim{Bytes: limit}, within, "on request")
	case req.Take > 0:
		st, err := inst.status(callTimeout)
		if err != nil {
			return none, err
		}
		used := st.Stats.MemoryUsed
		if used < least || req.Take > used-least {
			return none, api.Errorf(api.Refused, "%s cannot be taken back from VM %s: it uses %s, and %s", size.Format(req.Take), v.name(),
				tenant.MemoryBytes.Format(int64(used)), whyLeast(&cfg))
		}
		return v.order(ctx, inst, keeping(used-req.Take, limit), within, "on request")
	}
	return v.order(ctx, inst, hv.Reclaim{Bytes: min(req.Keep, limit)}, within, "on request")
}

// keeping is an order to keep no more than target of what is used.
func keeping(target, limit uint64) hv.Reclaim {
	return hv.Reclaim{Bytes: min(target+hv.Headroom(target), limit), Target: target}
}

// leastKept is what is never asked for: what is reserved, or what no guest lives without.
func leastKept(cfg *api.VMConfig) uint64 {
	if cfg.Personality == api.Linux {
		return max(uint64(cfg.Share.Memory.Reserved), api.MinKeepLinux)
	}
	return max(uint64(cfg.Share.Memory.Reserved), api.MinKeep)
}

// whyLeast says which of them.
func whyLeast(cfg *api.VMConfig) string {
	r := leastKept(cfg)
	if r == uint64(cfg.Share.Memory.Reserved) {
		return fmt.Sprintf("%s are reserved for it, which is never taken; lower that with grailctl set %s --memory-reserved SIZE", size.Format(r), cfg.Name)
	}
	return fmt.Sprintf("it is left with %s at least", size.Format(r))
}

// memoryLimit is how much a VM may use, unless it is asked for some of it.
func memoryLimit(cfg *api.VMConfig) uint64 {
	if cfg.MemoryLimit > 0 {
		return min(cfg.MemoryLimit, cfg.MemoryBytes)
	}
	return cfg.MemoryBytes
}

// order tells a VM how much memory it may use, and returns when it keeps to that or has ended.
func (v *vm) order(ctx context.Context, inst *instance, r hv.Reclaim, within time.Duration, why string) (api.ReclaimedVM, error) {
	out := api.ReclaimedVM{Name: v.name()}
	d := v.d
	r.WithinMs = within.Milliseconds()
	d.log.Info("memory ordered", "vm", v.name(), "bound", tenant.MemoryBytes.Format(int64(r.Bytes)), "within", within, "why", why)
	over := v.ended()
	resp, fds, err := inst.call(hv.Request{Op: hv.OpReclaim, Reclaim: &r}, within+reclaimSlack)
	closeFDs(fds)
	if err == nil && resp.Reclaimed == nil {
		err = errors.New("the VM's process answered without a result")
	}
	if err != nil && !errors.Is(err, hv.ErrClosed) {
		if !inst.gone() {
			return out, err
		}
	}
	if resp.Reclaimed != nil {
		out.Reclaimed = *resp.Reclaimed
	}
	if err != nil || out.Ended { // it has ended, of that or of something else
		out.Ended = true
		select {
		case <-over:
		case <-ctx.Done():
			return out, ctx.Err()
		case <-time.After(reclaimSlack):
			return out, errTimeout
		}
		if r := v.view().Report; r != nil {
			out.Cause, out.Message = r.Cause, r.Message
		}
		d.log.Warn("memory reclaimed", "vm", v.name(), "ended", true, "message", out.Message)
		return out, nil
	}
	d.domains.setBound(v.key(), out.Bound)
	d.log.Info("memory reclaimed", "vm", v.name(), "bound", tenant.MemoryBytes.Format(int64(out.Bound)), "before", out.Before, "given", out.Given, "taken", out.Taken, "after", out.After,
		"ms", out.Ms, "told", out.Told, "superseded", out.Superseded)
	return out, nil
}

// setBound has the memory fence of a VM follow what it may use now.
func (dm *domains) setBound(key tenant.Key, bytes uint64) {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	s, ok := dm.tree.Share(key)
	if !ok {
		return
	}
	if bytes >= uint64(s.Memory.Limit) {
		delete(dm.bounds, key)
	} else {
		dm.bounds[key] = bytes
	}
	dm.sync()
}

// hold keeps the memory fence of a VM from becoming tighter than so many bytes, until setBound.
func (dm *domains) hold(key tenant.Key, bytes uint64) {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	if _, ok := dm.bounds[key]; !ok {
		dm.bounds[key] = bytes
	}
}

// rebound has a VM that has just started, or whose limit was changed, keep to its limit.
func (v *vm) rebound(inst *instance, cfg api.VMConfig) (api.ReclaimedVM, error) {
	return v.order(context.Background(), inst, hv.Reclaim{Bytes: memoryLimit(&cfg)}, api.DefaultReclaimMs*time.Millisecond, "limit")
}
