package daemon

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
	"github.com/grailos/grail/mgmt/tenant"
)

// room is the host's memory for reservations that are about to be prefaulted.
type room struct {
	turn     sync.Mutex // held while room is made
	mu       sync.Mutex
	promised map[*promise]bool
}

// promise is a reservation whose VM has not prefaulted it yet.
type promise struct{ left uint64 }

// besideReserved is what the process of a VM needs beside its guest's memory, in bytes.
const besideReserved = 24 << 20

// outstanding returns how much is promised.
func (r *room) outstanding() (sum uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.promised {
		sum += p.left
	}
	return sum
}

// keep says how much of a promise is left; 0 ends it.
func (r *room) keep(p *promise, left uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.left = left; left == 0 {
		delete(r.promised, p)
	}
}

// promise finds room for bytes that a VM of a tenant has reserved, if need be by asking others for memory that is not reserved for them, or says why there is none.
func (d *Daemon) promise(ctx context.Context, who tenant.Key, parent tenant.Path, bytes uint64) (*promise, error) {
	need := bytes + besideReserved
	d.room.turn.Lock()
	defer d.room.turn.Unlock()
	lack := func() uint64 {
		left, known := d.memoryLeft()
		if !known {
			return 0
		}
		return need - min(need, left-min(left, d.room.outstanding()))
	}
	asked := map[string]bool{}
	var answers []string
	for short := lack(); short > 0; short = lack() {
		list := d.lenders(ctx, who, parent, asked)
		most := uint64(0)
		for _, l := range list {
			most += l.over
		}
		if most < short { // nobody is asked for what would not help
			left, _ := d.memoryLeft()
			e := fmt.Sprintf("%v has %s reserved, and the host has only %s available", who, size.Format(bytes), tenant.MemoryBytes.Format(int64(left)))
			if n := d.room.outstanding(); n > 0 {
				e += fmt.Sprintf(", of which %s are for others that are starting", tenant.MemoryBytes.Format(int64(n)))
			}
			if len(answers) > 0 {
				e += "; asked for memory that is not reserved for them: " + strings.Join(answers, ", ")
			}
			if most == 0 {
				e += "; no other VM uses more than what is reserved for it"
			} else {
				e += fmt.Sprintf("; other VMs use only %s more than what is reserved for them", tenant.MemoryBytes.Format(int64(most)))
			}
			return nil, api.Errorf(api.Refused, "%s", e)
		}
		answers = append(answers, d.borrow(ctx, choose(list, short, asked), fmt.Sprintf("%v needs %s", who, size.Format(bytes)))...)
	}
	p := &promise{left: need}
	d.room.mu.Lock()
	defer d.room.mu.Unlock()
	if d.room.promised == nil {
		d.room.promised = map[*promise]bool{}
	}
	d.room.promised[p] = true
	return p, nil
}

// lender is a VM that uses more than what is reserved for it.
type lender struct {
	v    *vm
	inst *instance
	near bool   // it is of the tenant that needs memory
	used uint64 // bytes
	over uint64 // of it not reserved
	take uint64 // to be asked for

	limit uint64 // of what it may use otherwise
}

// lenders lists the VMs that use more than what is reserved for them, and were not asked yet.
func (d *Daemon) lenders(ctx context.Context, who tenant.Key, parent tenant.Path, asked map[string]bool) (list []lender) {
	d.mu.Lock()
	all := slices.Collect(maps.Values(d.vms))
	d.mu.Unlock()
	for _, v := range all {
		v.mu.Lock()
		inst, cfg := v.inst, v.rec.Config
		v.mu.Unlock()
		if inst == nil || asked[v.name()] || v.key() == who || ctx.Err() != nil {
			continue
		}
		st, err := inst.status(time.Second)
		if err != nil {
			continue
		}
		l := lender{v: v, inst: inst, near: cfg.Tenant == string(parent), limit: memoryLimit(&cfg), used: st.Stats.MemoryUsed}
		if least := max(leastKept(&cfg), api.MinMemory); l.used > least+minLoan {
			l.over = l.used - least
			list = append(list, l)
		}
	}
	return list
}

// minLoan is the least that a VM is asked for, in bytes.
const minLoan = 1 << 20

// choose says who is asked for how much, so that it makes up what is short: VMs of the same tenant first, and of those, as of the others, who uses most beyond its
// reservation. Nobody is asked twice.
func choose(list []lender, short uint64, asked map[string]bool) (chosen []lender) {
	slices.SortFunc(list, func(a, b lender) int {
		if a.near != b.near {
			if a.near {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.over, a.over), strings.Compare(a.v.name(), b.v.name()))
	})
	for _, l := range list {
		if short == 0 {
			break
		}
		l.take = min(l.over, max(short, minLoan))
		short -= min(short, l.take)
		asked[l.v.name()] = true
		chosen = append(chosen, l)
	}
	return chosen
}

// borrow asks all of them at the same time, and says what came of it.
func (d *Daemon) borrow(ctx context.Context, list []lender, why string) []string {
	answers := make([]string, len(list))
	var wg sync.WaitGroup
	for i, l := range list {
		wg.Go(func() {
			out, err := l.v.order(ctx, l.inst, keeping(l.used-l.take, l.limit), api.DefaultReclaimMs*time.Millisecond, why)
			switch {
			case err != nil:
				answers[i] = fmt.Sprintf("%s: %v", l.v.name(), err)
			case out.Ended:
				answers[i] = fmt.Sprintf("%s ended", l.v.name())
			default:
				l.v.lend(true)
				answers[i] = fmt.Sprintf("%s gave %s", l.v.name(), tenant.MemoryBytes.Format(int64(out.Before-min(out.Before, out.After))))
			}
		})
	}
	wg.Wait()
	return answers
}

// lend notes whether the VM was asked for memory that it is to have again when there is room for it.
func (v *vm) lend(lent bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rec.Lent = lent
	rec := v.rec
	v.d.store.PutVMLater(&rec)
}

// repay raises the bounds of VMs that lent memory, as far as the host has room for all that they may then use, those first that were started first.
func (d *Daemon) repay() {
	d.room.turn.Lock()
	defer d.room.turn.Unlock()
	d.mu.Lock()
	list := slices.Collect(maps.Values(d.vms))
	d.mu.Unlock()
	list = slices.DeleteFunc(list, func(v *vm) bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.inst == nil || !v.rec.Lent
	})
	slices.SortFunc(list, func(a, b *vm) int { return a.view().Started.Compare(b.view().Started) })
	for _, v := range list {
		inst, err := v.current()
		if err != nil {
			continue
		}
		st, err := inst.status(time.Second)
		if err != nil {
			continue
		}
		cfg := v.view().VMConfig
		limit := memoryLimit(&cfg)
		left, known := d.memoryLeft()
		if !known || left < d.room.outstanding()+limit-min(limit, st.Stats.MemoryUsed)+besideReserved {
			return
		}
		if _, err := v.order(context.Background(), inst, hv.Reclaim{Bytes: limit}, 0, "there is room again"); err == nil {
			v.lend(false)
		}
	}
}

// reserveTime is how long a VM's process may take to prefault what is reserved, and not say how far it is.
const reserveTime = 2 * time.Minute

// reserve has a VM that runs prefault another reservation than it has.
func (v *vm) reserve(inst *instance, bytes uint64) error {
	_, fds, err := inst.call(hv.Request{Op: hv.OpReserve, Reserve: bytes}, reserveTime)
	closeFDs(fds)
	if err != nil && !inst.gone() {
		return fmt.Errorf("VM %s has %s reserved, which counts, but could not prefault it: %w", v.name(), size.Format(bytes), err)
	}
	return nil
}

// prefaultEvery is how often a VM that starts is asked how far its reservation is prefaulted.
const prefaultEvery = 20 * time.Millisecond

// prefault returns when the VM has prefaulted its reservation, or has ended.
func (v *vm) prefault(inst *instance, p *promise, reserved uint64) {
	defer v.d.room.keep(p, 0)
	tick := time.NewTicker(prefaultEvery)
	defer tick.Stop()
	for {
		select {
		case <-inst.ended:
			return
		case <-v.d.closing:
			return
		case <-tick.C:
		}
		st, err := inst.status(callTimeout)
		if err != nil {
			continue
		}
		if st.Stats.Memory.Note != "" || st.Stats.Memory.Prefaulted >= reserved {
			return
		}
		v.d.room.keep(p, reserved-st.Stats.Memory.Prefaulted+besideReserved)
	}
}
