package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/tenant"
)

// checkRealTime refuses a real-time budget that a VM cannot have.
func checkRealTime(c *api.VMConfig) error {
	if c.Share.CPU.RealTime == nil {
		return nil
	}
	if c.Personality != api.Native {
		return api.Errorf(api.Invalid, "a real-time budget is for native VMs, whose first thread has it; give a Linux VM a CPU guarantee")
	}
	if c.CPU > 0 && tenant.Milli(c.CPU*1000) < c.Share.CPU.RealTime.Milli() {
		return api.Errorf(api.Invalid, "a real-time budget of %v is more than the cap of %g cores", c.Share.CPU.RealTime.Milli(), c.CPU)
	}
	return nil
}

// realTime gives the VM's first thread its budget, or takes it away, and notes what cannot be done. It waits until the guest has that thread.
func (v *vm) realTime(inst *instance, rt *tenant.RealTime) {
	err := v.d.schedule(inst, rt)
	if err == nil || inst.gone() {
		return
	}
	v.d.log.Warn("real-time budget", "vm", v.name(), "error", err)
	v.addNote("the real-time budget is not kept: " + err.Error())
}

// addNote adds to what is weaker than asked for.
func (v *vm) addNote(note string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rec.Notes = append(v.rec.Notes, note)
	rec := v.rec
	v.d.store.PutVMLater(&rec)
}

// schedule puts the first thread of a VM's guest under SCHED_DEADLINE (sched(7)) with a budget, or back under the default policy with nil. The kernel
// has an admission of its own, over what all of the host's threads ask for.
func (d *Daemon) schedule(inst *instance, rt *tenant.RealTime) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	pause := time.Millisecond
	for {
		st, err := inst.status(callTimeout)
		if err == nil && st.Leader > 0 {
			tid, err := hostThread(inst.proc.PID, st.Leader)
			if err != nil {
				return err
			}
			return setDeadline(tid, rt)
		}
		if errors.Is(err, hv.ErrClosed) {
			return err
		}
		select {
		case <-inst.ended:
			return hv.ErrClosed
		case <-ctx.Done():
			return errors.New("the guest has no first thread")
		case <-time.After(pause):
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// hostThread returns the number here of the thread that process pid, or a child of it, knows as inner in its PID namespace.
func hostThread(pid, inner int) (int, error) {
	depth := len(numbersOf(pid))
	for tid := range threadTimes(pid) {
		// A child may be in one more namespace.
		if n := numbersOf(tid); depth > 0 && len(n) >= depth && n[depth-1] == strconv.Itoa(inner) {
			return tid, nil
		}
	}
	return 0, fmt.Errorf("thread %d of process %d is not found", inner, pid)
}

// numbersOf returns the numbers that a thread has, in graild's PID namespace and in each one below it.
func numbersOf(tid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return nil // it has ended
	}
	for line := range strings.Lines(string(b)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return strings.Fields(numbers)
		}
	}
	return nil
}

func setDeadline(tid int, rt *tenant.RealTime) error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	if rt != nil {
		// Threads that it starts are not real-time: a thread with a budget could start none otherwise.
		attr.Policy, attr.Flags = unix.SCHED_DEADLINE, unix.SCHED_FLAG_RESET_ON_FORK
		attr.Runtime, attr.Deadline, attr.Period = uint64(rt.GrantUs())*1000, uint64(rt.PeriodUs)*1000, uint64(rt.PeriodUs)*1000
	}
	err := unix.SchedSetAttr(tid, &attr, 0)
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("this host does not let graild use SCHED_DEADLINE; run it as root: %w", err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("the kernel has promised its real-time budgets to others (kernel.sched_rt_runtime_us): %w", err)
	case err != nil:
		return fmt.Errorf("SCHED_DEADLINE: %w", err)
	}
	return nil
}
