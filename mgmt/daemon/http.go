package daemon

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
)

// maxRequest bounds a request's body, in bytes: arguments and environment may be long.
const maxRequest = 4 << 20

// Listen returns the API socket. Only its owner can reach it.
func (d *Daemon) Listen() (net.Listener, error) { return listenUnix("unix", d.dirs.API()) }

// Handler returns the API. shutdown is called when a client asks graild to end.
func (d *Daemon) Handler(shutdown func()) http.Handler {
	mux := http.NewServeMux()
	route := func(pattern string, f func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
			v, err := f(r)
			d.answer(w, r, v, err)
		})
	}
	route("GET /v1/version", func(*http.Request) (any, error) {
		return api.Version{Version: d.version, API: api.APIVersion, PID: os.Getpid(), Started: d.started,
			State: d.dirs.State, Log: d.dirs.Log(), Build: d.build}, nil
	})
	route("POST /v1/shutdown", func(*http.Request) (any, error) {
		shutdown()
		return struct{}{}, nil
	})
	route("GET /v1/vms", func(*http.Request) (any, error) { return d.VMs(), nil })
	route("POST /v1/vms", d.createVM)
	route("GET /v1/vms/{name}", func(r *http.Request) (any, error) { return d.VM(r.PathValue("name")) })
	route("DELETE /v1/vms/{name}", func(r *http.Request) (any, error) {
		return struct{}{}, d.RemoveVM(r.Context(), r.PathValue("name"), r.FormValue("force") != "")
	})
	route("POST /v1/vms/{name}/start", d.startVM)
	route("POST /v1/vms/{name}/stop", d.stopVM)
	route("POST /v1/vms/{name}/signal", d.signalVM)
	route("GET /v1/vms/{name}/wait", d.waitVM)
	route("POST /v1/vms/{name}/attach", d.attachDevice)
	route("POST /v1/vms/{name}/detach", d.detachDevice)
	route("POST /v1/vms/{name}/reclaim", d.reclaimVM)
	route("PATCH /v1/vms/{name}/share", d.setVM)
	d.tenantRoutes(route)
	route("GET /v1/drivers", func(*http.Request) (any, error) { return d.Drivers(), nil })
	route("POST /v1/drivers", func(r *http.Request) (any, error) {
		var req api.CreateDriver
		if err := decode(r, &req); err != nil {
			return nil, err
		}
		// A client that goes away does not undo what it asked for.
		if err := d.CreateDriver(context.WithoutCancel(r.Context()), req.Config); err != nil {
			return nil, err
		}
		return d.Driver(req.Config.Name)
	})
	route("GET /v1/drivers/{name}", func(r *http.Request) (any, error) { return d.Driver(r.PathValue("name")) })
	route("GET /v1/drivers/{name}/stats", func(r *http.Request) (any, error) { return d.DriverStats(r.PathValue("name")) })
	route("GET /v1/drivers/{name}/shares", func(r *http.Request) (any, error) { return d.DriverShares(r.PathValue("name")) })
	route("POST /v1/drivers/{name}/shares", d.setDriverShare)
	route("GET /v1/drivers/{name}/state", func(r *http.Request) (any, error) { return d.DriverState(r.PathValue("name")) })
	route("DELETE /v1/drivers/{name}", func(r *http.Request) (any, error) {
		return struct{}{}, d.RemoveDriver(r.PathValue("name"), r.FormValue("force") != "")
	})
	route("POST /v1/drivers/{name}/restart", d.restartDriver)
	route("POST /v1/drivers/{name}/resume", d.resumeDriver)
	route("POST /v1/drivers/{name}/set", d.setDriver)
	route("POST /v1/drivers/{name}/upgrade", d.upgradeDriver)
	route("POST /v1/drivers/{name}/crash", d.crashDriver)
	route("POST /v1/drivers/{name}/inject", d.injectDriver)
	route("POST /v1/vms/{name}/inject", d.injectVM)
	route("GET /v1/logs", func(*http.Request) (any, error) { return d.Logs(), nil })
	route("GET /v1/logs/{name}", func(r *http.Request) (any, error) { return d.Log(r.PathValue("name")) })
	mux.HandleFunc("GET /v1/events", d.serveEvents)
	route("GET /v1/crashes", func(r *http.Request) (any, error) {
		name := r.FormValue("driver")
		if name != "" {
			if _, err := d.driver(name); err != nil {
				return nil, err
			}
		}
		if err := d.store.Sync(); err != nil {
			return nil, err
		}
		return d.store.Crashes(name)
	})
	return mux
}

func decode(r *http.Request, v any) error {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		return api.Errorf(api.Invalid, "request body: %v", err)
	}
	return nil
}

// statusOf maps kinds of error to HTTP.
var statusOf = map[api.Kind]int{
	api.Invalid:   http.StatusBadRequest,
	api.NotFound:  http.StatusNotFound,
	api.Exists:    http.StatusConflict,
	api.Busy:      http.StatusConflict,
	api.Refused:   http.StatusConflict,
	api.CannotRun: http.StatusUnprocessableEntity,
	api.Internal:  http.StatusInternalServerError,
}

func (d *Daemon) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		kind := api.KindOf(err)
		if kind == api.Internal {
			d.log.Error("request", "method", r.Method, "path", r.URL.Path, "error", err)
		}
		w.WriteHeader(statusOf[kind])
		v = api.Error{Kind: kind, Message: err.Error()}
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		d.log.Debug("answer", "path", r.URL.Path, "error", err)
	}
}

func (d *Daemon) createVM(r *http.Request) (any, error) {
	var req api.CreateVM
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	// The start of the VM writes the record: one wait for the disk instead of two.
	if err := d.CreateVM(req.Config, req.Start == nil); err != nil {
		return nil, err
	}
	if req.Start == nil {
		v, err := d.vm(req.Config.Name)
		if err != nil {
			return nil, err
		}
		return v.view(), nil
	}
	v, err := d.start(r.Context(), req.Config.Name, req.Start)
	if err != nil {
		// A VM that never ran is not worth keeping.
		if rmErr := d.RemoveVM(context.WithoutCancel(r.Context()), req.Config.Name, true); rmErr != nil {
			d.log.Warn("remove a VM that did not start", "vm", req.Config.Name, "error", rmErr)
		}
	}
	return v, err
}

func (d *Daemon) startVM(r *http.Request) (any, error) {
	var req api.StartVM
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return d.start(r.Context(), r.PathValue("name"), &req)
}

func (d *Daemon) start(ctx context.Context, name string, req *api.StartVM) (api.VM, error) {
	v, err := d.vm(name)
	if err != nil {
		return api.VM{}, err
	}
	files := d.handover.claim(req.Ticket)
	if files == nil {
		return api.VM{}, api.Errorf(api.Invalid, "ticket %q stands for nothing", req.Ticket)
	}
	defer closeFiles(files)
	if err := v.start(context.WithoutCancel(ctx), files); err != nil {
		return api.VM{}, err
	}
	if req.Wait {
		if err := v.awaitReady(ctx); err != nil {
			return v.view(), err
		}
	}
	return v.view(), nil
}

// awaitReady returns when the VM's program runs, has run already, or failed to start, which is an error.
func (v *vm) awaitReady(ctx context.Context) error {
	over := v.ended()
	pause := time.Millisecond
	for {
		inst, err := v.current()
		if err == nil {
			// An unanswered question is asked again: the end of the VM decides.
			if st, err := inst.status(callTimeout); err == nil && st.State == "ready" {
				return nil
			}
		}
		select {
		case <-over:
			if r := v.view().Report; r != nil && (r.Cause == "setup" || r.Cause == "engine") {
				return api.Errorf(api.CannotRun, "VM %s does not start: %s", v.name(), describe(r))
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 20*time.Millisecond)
	}
}

func (d *Daemon) stopVM(r *http.Request) (any, error) {
	var req api.StopVM
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	v, err := d.vm(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if err := v.stop(r.Context(), time.Duration(max(req.GraceMs, 0))*time.Millisecond); err != nil {
		return nil, err
	}
	return v.view(), nil
}

// maxSignal is Linux's highest signal number.
const maxSignal = 64

func (d *Daemon) signalVM(r *http.Request) (any, error) {
	var req api.SignalVM
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	if req.Signal < 1 || req.Signal > maxSignal {
		return nil, api.Errorf(api.Invalid, "there is no signal %d", req.Signal)
	}
	v, err := d.vm(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return struct{}{}, v.signal(unix.Signal(req.Signal))
}

func (d *Daemon) waitVM(r *http.Request) (any, error) {
	v, err := d.vm(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	generation, err := strconv.Atoi(r.FormValue("generation"))
	if err != nil {
		return nil, api.Errorf(api.Invalid, "generation %q is no number", r.FormValue("generation"))
	}
	w := v.view()
	if w.Generation == generation && w.State.Live() {
		select {
		case <-v.ended():
			w = v.view()
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-d.closing:
			// A broken connection makes the client ask the next graild.
			panic(http.ErrAbortHandler)
		}
	}
	if w.Generation != generation {
		return nil, api.Errorf(api.NotFound, "VM %s was started again; its run %d is forgotten", v.name(), generation)
	}
	return w, nil
}

func (d *Daemon) restartDriver(r *http.Request) (any, error) {
	dr, err := d.driver(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if err := dr.restart(r.Context()); err != nil {
		return nil, err
	}
	return dr.view(), nil
}

func (d *Daemon) crashDriver(r *http.Request) (any, error) {
	var req api.CrashDriver
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	dr, err := d.driver(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if err := dr.crash(r.Context(), req.How); err != nil {
		return nil, err
	}
	return dr.view(), nil
}
