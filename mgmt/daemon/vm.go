package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/store"
	"github.com/grailos/grail/mgmt/tenant"
)

// vm is a personality VM.
type vm struct {
	d *Daemon

	op sync.Mutex // held by start and remove, which wait

	mu      sync.Mutex
	rec     store.VM
	inst    *instance     // of the present run, or nil
	clients []*client     // of the present run
	over    chan struct{} // of the present or last run: closed when its end is recorded
}

// vmmMemory is what a VMM may use beyond the guest's memory before the memory fence ends it, in bytes. One that translates has the translated code
// besides.
const vmmMemory = 128 << 20

func (d *Daemon) newVM(rec *store.VM) *vm {
	v := &vm{d: d, rec: *rec, over: make(chan struct{})}
	close(v.over)
	return v
}

// key names the VM in the tree of reservations.
func (v *vm) key() tenant.Key { return tenant.Key{Kind: tenant.VM, Name: v.name()} }

// parent is the tenant that the VM belongs to, which is fixed for its life.
func (v *vm) parent() tenant.Path { return tenant.Path(v.rec.Config.Tenant) }

// name is fixed for the VM's life.
func (v *vm) name() string { return v.rec.Config.Name }

// start runs the VM with the files of a handover, which stay the caller's. It returns when the process exists.
func (v *vm) start(ctx context.Context, files map[api.Role]*os.File) (err error) {
	v.op.Lock()
	defer v.op.Unlock()
	v.mu.Lock()
	cfg, running, generation := v.rec.Config, v.inst != nil, v.rec.Generation+1
	v.mu.Unlock()
	if running {
		return api.Errorf(api.Busy, "VM %s runs already; stop it first with grailctl stop %s", cfg.Name, cfg.Name)
	}
	var m *machine
	if cfg.Personality == api.Linux {
		m, err = v.d.linuxMachine(cfg, generation)
	} else {
		m, err = v.d.nativeMachine(cfg, files)
	}
	if err != nil {
		return err
	}
	l, notes, clients := m.launch, m.notes, m.clients()
	l.Spec.Stdin = l.Add(files[api.RoleStdin])
	l.Spec.Stdout = l.Add(files[api.RoleStdout])
	l.Spec.Stderr = l.Add(files[api.RoleStderr])
	defer func() {
		m.close()
		if err != nil {
			for _, c := range clients {
				c.close()
			}
		}
	}()

	if err := v.d.domains.admit(tenant.Path(cfg.Tenant), v.key(), shareOf(&cfg)); err != nil {
		return err
	}
	launched := false
	defer func() {
		if !launched {
			v.d.domains.dismiss(v.key())
		}
	}()
	var promised *promise
	if reserved := uint64(cfg.Share.Memory.Reserved); reserved > 0 && l.Spec.Engine != hv.EngineProcess {
		if promised, err = v.d.promise(ctx, v.key(), tenant.Path(cfg.Tenant), reserved); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				v.d.room.keep(promised, 0)
			}
		}()
	}
	withdraw, err := v.d.publish(cfg)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			withdraw()
		}
	}()

	// The record comes first: if graild dies now, the next one finds the process by its tag or sees that there is none.
	v.mu.Lock()
	rec := v.rec
	v.mu.Unlock()
	rec.State, rec.Generation, rec.Engine = api.Starting, generation, l.Spec.Engine
	rec.Started, rec.Ended, rec.Report, rec.Notes, rec.Process = time.Now(), time.Time{}, nil, notes, store.Process{BootID: v.d.bootID}
	if err := v.d.store.PutVM(&rec); err != nil {
		return err
	}
	_ = os.Remove(v.d.reportPath(cfg.Name, generation-1))
	inst, err := v.d.launch(l, roleVM, generation, true)
	if err != nil {
		rec.State, rec.Ended = api.Exited, time.Now()
		rec.Report = &hv.Report{Name: cfg.Name, Cause: hv.CauseSetup, Message: err.Error(), Started: rec.Started, Ended: rec.Ended}
		v.mu.Lock()
		v.rec = rec
		v.mu.Unlock()
		v.d.store.PutVMLater(&rec)
		return err
	}
	launched = true // from here on, the run's end gives its room back
	rec.Process.PID, rec.Process.Start = inst.proc.PID, inst.proc.StartTime()
	rec.State = api.Running
	rec.Notes = append(rec.Notes, v.d.domains.join(v.key(), inst.proc.PID)...)
	v.mu.Lock()
	v.rec, v.inst, v.clients, v.over = rec, inst, clients, make(chan struct{})
	v.mu.Unlock()
	v.d.store.PutVMLater(&rec)
	v.d.background.Go(func() { v.reap(inst, clients) })
	if promised != nil {
		v.d.background.Go(func() { v.prefault(inst, promised, uint64(cfg.Share.Memory.Reserved)) })
	}
	v.limit(inst, cfg)
	if cfg.MemoryLimit > 0 {
		if _, err := v.rebound(inst, cfg); err != nil {
			v.addNote("its memory limit is not enforced: " + err.Error())
		}
	}
	v.d.renamed(cfg.Nets)

	for i, c := range clients {
		ctx, cancel := context.WithTimeout(ctx, startPatience)
		aerr := m.grants[i].driver.attach(ctx, c)
		cancel()
		if errors.Is(aerr, errLeft) {
			break // the VM has ended already; its report says how
		}
		if aerr != nil {
			v.d.log.Error("start", "vm", cfg.Name, "error", aerr)
			_ = inst.proc.Kill()
			<-v.ended()
			return fmt.Errorf("VM %s: %s %s: %w", cfg.Name, c.what(), c.att.Disk, aerr)
		}
	}
	return nil
}

// reap waits for the end of a run, frees what it had and records how it ended.
func (v *vm) reap(inst *instance, clients []*client) {
	select {
	case <-inst.ended:
	case <-v.d.closing: // the next graild adopts it
		for _, c := range clients {
			c.close()
		}
		return
	}
	v.d.withdraw(v.name())
	for _, c := range clients {
		if dr, err := v.d.driver(c.att.Driver); err == nil {
			dr.detach(c)
		}
		c.close()
	}
	r := readReport(inst.report, v.name())
	if m := v.d.vmmError(roleVM, v.name(), inst.generation); r.Cause == hv.CauseKilled && m != "" {
		r.Message = m
	}
	cfg, _ := v.config()
	v.d.domains.blame(v.parent(), v.key(), shareOf(&cfg).Memory.VMM, r)
	inst.close()
	v.d.domains.dismiss(v.key())
	v.mu.Lock()
	v.inst, v.clients, v.rec.Lent = nil, nil, false
	v.rec.State, v.rec.Ended, v.rec.Report, v.rec.Process = api.Exited, r.Ended, r, store.Process{}
	rec := v.rec
	over := v.over
	v.d.store.PutVMLater(&rec)
	v.mu.Unlock()
	v.d.renamed(rec.Config.Nets)
	v.d.log.Info("VM ended", "vm", v.name(), "cause", r.Cause, "code", r.Code, "signal", r.Signal, "message", r.Message)
	close(over)
	v.d.background.Go(v.d.repay)
	if rec.Config.Remove {
		v.d.removeLater(v, rec.Generation)
	}
}

// ended returns a channel that is closed when the present run, or the last one, has ended and is recorded.
func (v *vm) ended() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.over
}

// current returns the present run.
func (v *vm) current() (*instance, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.inst == nil {
		return nil, api.Errorf(api.Busy, "VM %s does not run; start it with grailctl start %s", v.name(), v.name())
	}
	return v.inst, nil
}

// signal sends a signal to the guest.
func (v *vm) signal(sig unix.Signal) error {
	inst, err := v.current()
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		return v.force(inst)
	}
	return inst.signal(sig)
}

// force ends the guest without its consent: by its VMM, which still writes a report, or by killing that.
func (v *vm) force(inst *instance) error {
	_, got, err := inst.call(hv.Request{Op: hv.OpKill}, time.Second)
	closeFDs(got)
	if err == nil {
		select {
		case <-inst.ended:
			return nil
		case <-time.After(time.Second):
		}
	}
	if err := inst.proc.Kill(); err != nil && !inst.gone() {
		return err
	}
	return nil
}

// stop ends the VM: SIGTERM, then force after grace.
func (v *vm) stop(ctx context.Context, grace time.Duration) error {
	inst, err := v.current()
	if err != nil {
		return err
	}
	over := v.ended()
	if grace > 0 {
		if err := v.signal(unix.SIGTERM); err != nil {
			v.d.log.Warn("stop", "vm", v.name(), "error", err)
		}
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-over:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
	if err := v.force(inst); err != nil {
		return err
	}
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// view describes the VM.
func (v *vm) view() api.VM {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := &v.rec
	w := api.VM{VMConfig: r.Config, State: r.State, Generation: r.Generation, EngineUsed: r.Engine, Created: r.Created,
		Started: r.Started, Ended: r.Ended, Report: r.Report, Notes: slices.Clone(r.Notes), Logs: v.d.logsOf(r.Config.Name)}
	if v.inst != nil {
		w.PID = v.inst.proc.PID
	}
	return w
}
