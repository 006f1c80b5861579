package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/inject"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/trace"
)

// injection is a fault made on request, in the present instance of a driver.
type injection struct {
	how  string
	seed uint64
	at   time.Time
}

// kills reports whether the fault is that the VM's process is killed.
func (j *injection) kills() bool { return j.how == "kill" || j.how == "vmm:kill" }

// immediate reports whether the instance is lost from the moment of the fault on, so that the recovery counts from there.
func (j *injection) immediate() bool {
	return j.how == "fault" || j.kills() || strings.HasPrefix(j.how, "exception:")
}

func (d *Daemon) injectDriver(r *http.Request) (any, error) {
	var req api.Inject
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	dr, err := d.driver(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return dr.inject(r.Context(), req)
}

// inject makes a fault in the present instance; if the driver is just starting, once it serves.
func (dr *driver) inject(ctx context.Context, req api.Inject) (api.Injected, error) {
	none := api.Injected{}
	k, err := req.Check()
	if err != nil {
		return none, err
	}
	if typ := dr.rec.Config.Type; len(k.Drivers) > 0 && !slices.Contains(k.Drivers, typ) {
		return none, api.Errorf(api.Invalid, "fault %s is for drivers of type %s; %s is of type %s", k.Name, strings.Join(k.Drivers, ", "), dr.name(), typ)
	}
	inst, err := dr.toCrash(ctx)
	if err != nil {
		return none, err
	}
	if err := offered(k, inst.engine); err != nil {
		return none, err
	}
	done := api.Injected{Kind: req.Kind, Seed: req.Seed, Target: fmt.Sprintf("driver %s, instance %d", dr.name(), inst.generation)}
	dr.expect(injection{how: req.Kind, seed: req.Seed, at: time.Now()})
	if done.What, err = dr.makeFault(inst, &req); err != nil {
		dr.expect(injection{})
		if inst.gone() || errors.Is(err, hv.ErrClosed) {
			err = api.Errorf(api.Busy, "driver %s has just died by itself; try again when it is ready", dr.name())
		}
		return none, err
	}
	dr.d.log.Info("fault injected", "driver", dr.name(), "kind", req.Kind, "seed", req.Seed, "what", done.What)
	return done, nil
}

// offered reports a kind of fault that does not work on an engine.
func offered(k *api.FaultKind, e hv.Engine) error {
	if len(k.Engines) > 0 && !slices.Contains(k.Engines, e) {
		return api.Errorf(api.CannotRun, "fault %s does not work on engine %s", k.Name, e)
	}
	return nil
}

// toCrash returns the present instance when it serves.
func (dr *driver) toCrash(ctx context.Context) (*driverInstance, error) {
	// One that has just died is not what is meant, though it is not noted yet.
	err := dr.waitFor(ctx, func() bool {
		return dr.state == api.Ready && !dr.inst.gone() || dr.state == api.BackOff || dr.state == api.CrashLoop
	})
	if err != nil {
		return nil, err
	}
	dr.mu.Lock()
	defer dr.mu.Unlock()
	if dr.state != api.Ready {
		return nil, api.Errorf(api.Busy, "driver %s is %s and cannot be crashed now; try again when it is ready", dr.name(), dr.state)
	}
	return dr.inst, nil
}

// expect notes what the next crash follows from.
func (dr *driver) expect(j injection) {
	dr.mu.Lock()
	dr.injected = j
	dr.mu.Unlock()
}

// told are the faults that the driver's program makes by itself, and what it is told.
var told = map[string]struct{ text, what string }{
	"hang:loop":     {"hang", "the program was told to loop for ever"},
	"hang:deadlock": {"deadlock", "two threads of the program were told to take two locks in different order"},
	"stall":         {"stall", "the program was told to beat and leave the next requests lying"},
	"memory":        {"memory", "the program was told to use up its memory"},
}

// makeFault makes a fault of any kind in an instance of the driver and says what it did.
func (dr *driver) makeFault(inst *driverInstance, req *api.Inject) (string, error) {
	o, err := orderOf(req)
	if err != nil {
		return "", api.Errorf(api.Invalid, "%v", err)
	}
	if o != nil {
		return inst.order(o, func() (*os.File, error) {
			path, err := dr.programPath(inst.program)
			if err != nil {
				return nil, err
			}
			return os.Open(path)
		})
	}
	random := (&inject.Order{Seed: req.Seed}).Random()
	switch req.Kind {
	case "ring:driver":
		return inst.driverLies(req, random)
	case "ring:client":
		return dr.clientBreaks(req, random)
	case "bell:storm":
		return dr.storm(req)
	}
	if t, ok := told[req.Kind]; ok {
		return t.what, inst.inject(t.text)
	}
	return inst.kill(req.Kind)
}

// kill makes the faults that end a VM at once.
func (i *instance) kill(kind string) (string, error) {
	if kind == "kill" {
		return "the program was sent SIGKILL", i.signal(unix.SIGKILL)
	}
	return fmt.Sprintf("process %d, which runs the VM, was sent SIGKILL", i.proc.PID), i.proc.Kill()
}

// injectTimeout bounds how long an order takes: one thread after the other is tried.
const injectTimeout = 60 * time.Second

// order has the VM's process make or arm a fault. program opens the VM's program, for the names in it.
func (i *instance) order(o *inject.Order, program func() (*os.File, error)) (string, error) {
	resp, got, err := i.call(hv.Request{Op: hv.OpInject, Order: o}, injectTimeout)
	closeFDs(got)
	switch {
	case errors.Is(err, hv.ErrClosed) && !o.Armed():
		return "the VM died of the fault before it could tell what was done", nil
	case errors.Is(err, hv.ErrClosed):
		return "", err // of something else, before it could be armed
	case err != nil:
		return "", api.Errorf(api.CannotRun, "%v", err)
	case resp.Hit == nil:
		return "", errors.New("the VM's process did not say what it did")
	}
	what := resp.Hit.What
	if len(resp.Hit.Code) == 0 {
		return what, nil
	}
	f, err := program()
	if err != nil {
		return what, nil // without names
	}
	defer f.Close()
	names, err := trace.Open(f)
	if err != nil {
		return what, nil
	}
	for _, addr := range resp.Hit.Code {
		if name := names.Name(addr, resp.Hit.Bias); name != "" {
			what += fmt.Sprintf("; %#x is in %s", addr, name)
		}
	}
	return what, nil
}

// signal sends a signal to the VM's program, which may be gone before the answer is out.
func (i *instance) signal(sig unix.Signal) error {
	_, got, err := i.call(hv.Request{Op: hv.OpSignal, Signal: int(sig)}, callTimeout)
	closeFDs(got)
	if errors.Is(err, hv.ErrClosed) {
		return nil
	}
	return err
}

func (d *Daemon) injectVM(r *http.Request) (any, error) {
	var req api.Inject
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	v, err := d.vm(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	k, err := req.Check()
	if err != nil {
		return nil, err
	}
	if !k.VM || v.rec.Config.Personality != api.Native {
		return nil, api.Errorf(api.Invalid, "fault %s is not for VM %s; see grailctl inject --list", k.Name, v.name())
	}
	inst, err := v.current()
	if err != nil {
		return nil, err
	}
	if err := offered(k, inst.engine); err != nil {
		return nil, err
	}
	done := api.Injected{Kind: req.Kind, Seed: req.Seed, Target: fmt.Sprintf("VM %s, run %d", v.name(), inst.generation)}
	o, err := orderOf(&req)
	switch {
	case err != nil:
		return nil, api.Errorf(api.Invalid, "%v", err)
	case o == nil:
		done.What, err = inst.kill(req.Kind)
	default:
		done.What, err = inst.order(o, func() (*os.File, error) { return os.Open(v.rec.Config.Program) })
	}
	if errors.Is(err, hv.ErrClosed) {
		err = api.Errorf(api.Busy, "VM %s has just ended by itself", v.name())
	}
	if err != nil {
		return nil, err
	}
	d.log.Info("fault injected", "vm", v.name(), "kind", req.Kind, "seed", req.Seed, "what", done.What)
	return done, nil
}
