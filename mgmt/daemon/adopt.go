package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/store"
)

// running is a grailvm process of this store that was found on the host.
type running struct {
	role       role
	name       string
	generation int
	pid        int
}

// adopt takes over what a predecessor left: VMs and drivers that run, runs that ended meanwhile, and starts that were
// interrupted. Processes are found by their tags, so that also one is found whose start was not recorded.
func (d *Daemon) adopt() error {
	vms, err := d.store.VMs()
	if err != nil {
		return err
	}
	drivers, err := d.store.Drivers()
	if err != nil {
		return err
	}
	procs := d.scan()
	// take returns the process of a VM and ends others: spares, and what the predecessor was about to end. recorded is
	// the process that the record names. Without it, it is the oldest, since spares are younger.
	take := func(r role, name string, recorded store.Process) *running {
		var best *running
		for i := range procs {
			p := &procs[i]
			if p.role != r || p.name != name {
				continue
			}
			if best == nil || p.pid == recorded.PID || best.pid != recorded.PID && p.generation < best.generation {
				best, p = p, best
			}
			if p != nil {
				d.endStray(*p)
			}
		}
		return best
	}
	known := map[string]bool{}
	var begin []func()       // once everything is in its place
	var consoles []*instance // that have one
	clients := map[string][]*client{}
	for _, rec := range vms {
		known[string(roleVM)+rec.Config.Name] = true
		v := d.newVM(rec)
		d.vms[rec.Config.Name] = v
		run := v.adopt(take(roleVM, rec.Config.Name, rec.Process))
		if run != nil && run.output != nil {
			consoles = append(consoles, run)
		}
		if run != nil {
			begin = append(begin, func() {
				d.background.Go(func() { v.reap(run, v.clients) })
				v.settleLater(run)
			})
		}
		for _, c := range v.clients {
			clients[c.att.Driver] = append(clients[c.att.Driver], c)
		}
	}
	for _, rec := range drivers {
		known[string(roleDriver)+rec.Config.Name] = true
		dr := d.newDriver(rec)
		for _, c := range clients[rec.Config.Name] {
			dr.own(c)
		}
		d.drivers[rec.Config.Name] = dr
		newest := 0
		for _, p := range procs {
			if (p.role == roleDriver || p.role == roleStandIn) && p.name == rec.Config.Name {
				newest = max(newest, p.generation)
			}
			if p.role == roleStandIn && p.name == rec.Config.Name {
				dr.downSince = time.Now().Add(-maxFailAfter) // the requests of its clients failed already
			}
		}
		if rec.Config.Uplink != "" {
			known[string(roleNAT)+rec.Config.Name] = true
			dr.adoptNAT(take(roleNAT, rec.Config.Name, store.Process{}))
		}
		inst, lost := dr.adopt(take(roleDriver, rec.Config.Name, rec.Process), newest)
		if inst != nil && inst.output != nil {
			consoles = append(consoles, inst.instance)
		}
		if rec.Config.Socket {
			known[string(rolePortal)+rec.Config.Name] = true
			dr.adopted = take(rolePortal, rec.Config.Name, store.Process{})
		}
		begin = append(begin, func() {
			d.unfinishedReports(dr, inst)
			go dr.run(inst, lost)
		})
	}
	for _, v := range d.vms {
		d.republish(v)
	}
	for _, p := range procs {
		if !known[string(p.role)+p.name] {
			d.endStray(p)
		}
	}
	d.settleDomains()
	begin = append(begin, d.resumeOutputs(consoles))
	for _, f := range begin {
		f()
	}
	d.background.Go(d.sweepImages)
	if len(vms)+len(drivers) > 0 {
		d.log.Info("adopted", "vms", len(vms), "drivers", len(drivers), "processes", len(procs))
	}
	return nil
}

// scan finds the processes of this store.
func (d *Daemon) scan() []running {
	var list []running
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	prefix := "grail:" + d.store.ID + ":"
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// One that is dying counts: its last write may still be under way.
		args, err := hv.Arguments(pid)
		if err != nil {
			continue
		}
		// A child of grailvm has its arguments as well, until it executes something else: the VMM is the one whose
		// parent is not another of them.
		if len(args) != 3 || !strings.HasPrefix(args[2], prefix) {
			continue
		}
		f := strings.Split(strings.TrimPrefix(args[2], prefix), ":")
		if len(f) != 3 {
			continue
		}
		generation, err := strconv.Atoi(f[2])
		if err != nil {
			continue
		}
		list = append(list, running{role(f[0]), f[1], generation, pid})
	}
	pids := map[int]bool{}
	for _, p := range list {
		pids[p.pid] = true
	}
	return slices.DeleteFunc(list, func(p running) bool { return pids[parent(p.pid)] })
}

// parent returns the parent of a process, 0 when it is not known.
func parent(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "PPid:"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(v))
			return n
		}
	}
	return 0
}

// endStray ends a process that no record knows of.
func (d *Daemon) endStray(p running) {
	d.log.Info("ending a process that is not needed", "role", p.role, "name", p.name, "generation", p.generation, "pid", p.pid)
	if proc, err := d.open(p); err == nil {
		_ = proc.Kill()
		_ = proc.Wait(callTimeout)
		proc.Close()
	}
	switch p.role { // whose numbers have nothing to do with those of the others
	case rolePortal:
		_ = os.Remove(d.portalControl(p.name, p.generation))
		return
	case roleNAT:
		_ = os.Remove(d.natControl(p.name, p.generation))
		return
	}
	_ = os.Remove(d.socketPath(p.name, p.generation))
	if p.role == roleDriver || p.role == roleStandIn {
		_ = os.Remove(d.reportPath(p.name, p.generation)) // a spare's; others leave none when they are killed
	}
}

// open returns a handle on a process that scan found.
func (d *Daemon) open(p running) (*hv.Process, error) {
	return hv.FindProcess(p.pid, func(args []string) bool {
		return len(args) == 3 && args[2] == d.tag(p.role, p.name, p.generation)
	})
}

// instanceOf returns the run of a process that scan found, or nil when it ended meanwhile.
func (d *Daemon) instanceOf(p *running, e hv.Engine, launched time.Time) *instance {
	if p == nil {
		return nil
	}
	proc, err := d.open(*p)
	if err != nil {
		return nil
	}
	i := &instance{name: p.name, generation: p.generation, engine: e, proc: proc, launched: launched,
		socket: d.socketPath(p.name, p.generation), report: d.reportPath(p.name, p.generation), ended: make(chan struct{})}
	i.watch()
	return i
}

// kept asks a VM's process for the attachments of its Spec.
func (i *instance) kept() ([]*client, error) {
	resp, fds, err := i.call(hv.Request{Op: hv.OpAttachments}, callTimeout)
	if err != nil {
		closeFDs(fds)
		return nil, err
	}
	var list []*client
	used := map[int]bool{}
	for _, att := range resp.Attachments {
		// Each attachment gets descriptors of its own, since each is closed by itself.
		var files []*os.File
		att := cloneAttachment(att)
		var bad error
		att.Descriptors(func(n *int) {
			if *n >= len(fds) {
				bad = fmt.Errorf("attachment %d names descriptor %d of %d", att.ID, *n, len(fds))
				return
			}
			fd := fds[*n]
			if used[*n] {
				if fd, bad = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); bad != nil {
					return
				}
			}
			used[*n] = true
			files = append(files, hv.KeptFile(fd, "attachment"))
			*n = len(files) - 1
		})
		var c *client
		if bad == nil {
			c, bad = newClient(att, files)
		}
		if bad != nil {
			err = bad
			for _, f := range files {
				f.Close()
			}
			continue
		}
		list = append(list, c)
	}
	for n, fd := range fds {
		if !used[n] {
			unix.Close(fd)
		}
	}
	return list, err
}

// adoptPatience is for how long after its start graild asks VMs again that do not answer. On a host without a processor to spare they may
// take long, and a VM whose attachments it does not learn loses its disks for good.
const adoptPatience = time.Minute

// adopt goes on with the run that process p is and returns it, or records its end.
func (v *vm) adopt(p *running) *instance {
	d := v.d
	started := v.rec.State.Live() || p != nil
	if p != nil {
		v.rec.Generation = max(v.rec.Generation, p.generation)
	}
	inst := d.instanceOf(p, v.rec.Engine, v.rec.Started)
	if inst == nil {
		if !started {
			if v.rec.Config.Remove && v.rec.State == api.Exited {
				d.removeLater(v, v.rec.Generation)
			}
			return nil
		}
		_ = os.Remove(d.socketPath(v.name(), v.rec.Generation))
		r := readReport(d.reportPath(v.name(), v.rec.Generation), v.name())
		if r.Cause == hv.CauseKilled && v.rec.Process.PID == 0 {
			// graild was killed before it had started the process: nothing ran.
			v.rec.State, v.rec.Process = api.Created, store.Process{}
			d.store.PutVMLater(&v.rec)
			return nil
		}
		if r.Cause == hv.CauseKilled && v.rec.Process.BootID != d.bootID {
			r.Message = "the host was restarted"
		} else {
			d.domains.blame(v.parent(), v.key(), shareOf(&v.rec.Config).Memory.VMM, r)
		}
		v.rec.State, v.rec.Ended, v.rec.Report, v.rec.Process = api.Exited, r.Ended, r, store.Process{}
		d.store.PutVMLater(&v.rec)
		if v.rec.Config.Remove {
			d.removeLater(v, v.rec.Generation)
		}
		return nil
	}
	clients, err := inst.kept()
	for errors.Is(err, errTimeout) && time.Since(d.started) < adoptPatience {
		clients, err = inst.kept()
	}
	clients = d.adoptOutput(inst, roleVM, clients)
	if err != nil {
		d.log.Error("adopt: attachments are lost", "vm", v.name(), "error", err)
		v.rec.Notes = append(v.rec.Notes, "graild was restarted and did not learn all its disks: "+err.Error())
	}
	v.rec.State = api.Running
	v.rec.Process = store.Process{PID: inst.proc.PID, Start: inst.proc.StartTime(), BootID: d.bootID}
	v.inst, v.clients, v.over = inst, clients, make(chan struct{})
	d.store.PutVMLater(&v.rec)
	return inst
}

// adopt goes on with the instance that process p is. Without one, it returns the record of how the last one ended, if
// that was a crash. newest is the highest number of a process that was found.
func (dr *driver) adopt(p *running, newest int) (*driverInstance, *recovery) {
	d := dr.d
	var lost *recovery
	if p != nil && p.pid != dr.rec.Process.PID {
		// A successor, of which the predecessor had not taken note yet, or the spare of one that has died since.
		lost = dr.lost()
		dr.rec.Generation++
		dr.rec.Process = store.Process{PID: p.pid, BootID: d.bootID, Launch: p.generation}
	}
	dr.rec.Launch = max(dr.rec.Launch, newest)
	if i := d.instanceOf(p, dr.rec.Engine, dr.rec.Started); i != nil {
		inst := newDriverInstance(dr.rec.Runs)
		inst.instance, inst.adopted = i, true
		kept, err := i.kept()
		if err != nil {
			d.log.Error("adopt: descriptors are lost", "driver", dr.name(), "error", err)
		}
		for _, c := range d.adoptOutput(i, roleDriver, kept) {
			dr.keep(inst, c)
		}
		if inst.status != nil && len(dr.backings) == len(dr.rec.Config.Disks) && (dr.rec.Config.Uplink == "" || dr.uplink != nil) {
			dr.inst = inst
			d.store.PutDriverLater(&dr.rec)
			return inst, lost
		}
		// Without its status page a hang would go unnoticed; a new instance is better.
		d.log.Error("adopt: the driver's process did not give everything back; replacing it", "driver", dr.name())
		inst.end()
		inst.close()
		inst.closePages()
		if inst.output != nil {
			d.dropOutput(inst.output)
		}
	}
	for _, b := range dr.backings {
		b.file.Close()
	}
	dr.backings = nil
	if err := dr.reopen(); err != nil {
		d.log.Error("adopt: backing files", "driver", dr.name(), "error", err)
	}
	if lost == nil {
		lost = dr.lost()
	}
	dr.rec.Process = store.Process{}
	d.store.PutDriverLater(&dr.rec)
	return nil, lost
}

// lost returns the record of the end of the process that the driver's record names, which nobody saw, or which the
// predecessor saw and had not dealt with; nil when there was none, or when it ended with the host.
func (dr *driver) lost() *recovery {
	d, was := dr.d, dr.rec.Process
	if was.PID == 0 || was.BootID != d.bootID {
		return nil
	}
	path := d.reportPath(dr.name(), was.Launch)
	crashes, err := d.store.Crashes(dr.name())
	if err != nil {
		d.log.Error("crash records", "driver", dr.name(), "error", err)
	}
	if i := slices.IndexFunc(crashes, func(c api.Crash) bool { return c.Launch == was.Launch }); i >= 0 {
		dr.rec.Crashes = max(dr.rec.Crashes, len(crashes))
		return d.newRecovery(crashes[i], path)
	}
	dr.rec.Crashes++
	r := readReport(path, dr.name())
	now := time.Now()
	c := api.Crash{Driver: dr.name(), Generation: dr.rec.Generation, Launch: was.Launch, Cause: r.Cause, Message: describe(r),
		Clients: len(dr.clients), Crashed: r.Ended, Detected: now, Stopped: now, Report: r}
	if r.Cause == hv.CauseKilled {
		c.Crashed = now // nobody saw it
	}
	c.ID, _ = d.store.NextID()
	return d.newRecovery(c, path)
}

// keep sorts one descriptor that a driver's process kept into its place.
func (dr *driver) keep(inst *driverInstance, c *client) {
	files := c.files
	take := func(i int) *os.File {
		if i >= len(c.att.Regions) {
			return nil
		}
		f := files[c.att.Regions[i].FD]
		files[c.att.Regions[i].FD] = nil
		return f
	}
	if c.att.Driver == "" && c.att.Disk == keepStatus {
		inst.status, inst.hostStatus = take(0), take(1)
	} else if c.att.Driver == "" && c.att.Disk == keepState {
		inst.state = take(0)
	} else if c.att.Driver == "" && c.att.Disk == keepUplink {
		dr.adoptUplink(take(0), take(1))
	} else if id, ok := strings.CutPrefix(c.att.Disk, keepBacking); ok && c.att.Driver == "" {
		for _, k := range dr.rec.Config.Disks {
			if k.ID != id {
				continue
			}
			b := &backing{id: id, path: k.Path, readOnly: k.ReadOnly, file: take(0)}
			if b.file == nil {
				break
			}
			if err := b.inspect(); err != nil {
				dr.d.log.Error("adopt", "driver", dr.name(), "error", err)
				b.file.Close()
				break
			}
			dr.backings = append(dr.backings, b)
		}
	}
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// reopen opens and locks the backing files by their paths.
func (dr *driver) reopen() error {
	if err := dr.openUplink(); err != nil {
		return err
	}
	if len(dr.backings) == len(dr.rec.Config.Disks) {
		return nil
	}
	list, err := dr.d.openBackings(dr.config(), lockPatience)
	if err != nil {
		return err
	}
	dr.mu.Lock()
	dr.backings = list
	dr.mu.Unlock()
	return nil
}

// unfinishedReports completes the crash records of instances before the present one whose report files are still there:
// graild was killed before it had written them.
func (d *Daemon) unfinishedReports(dr *driver, inst *driverInstance) {
	if inst == nil {
		return // the newest report is in work
	}
	paths, _ := filepath.Glob(filepath.Join(d.dirs.VM(dr.name()), "report.*.json"))
	if len(paths) < 2 {
		return
	}
	crashes, err := d.store.Crashes(dr.name())
	if err != nil {
		d.log.Error("crash records", "driver", dr.name(), "error", err)
		return
	}
	for _, path := range paths {
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "report."), ".json"))
		if err != nil || n >= inst.generation {
			continue
		}
		r := readReport(path, dr.name())
		c := api.Crash{Driver: dr.name(), Generation: dr.rec.Generation - 1, Launch: n, Cause: r.Cause, Message: describe(r),
			Crashed: r.Ended, Report: r}
		if i := slices.IndexFunc(crashes, func(c api.Crash) bool { return c.Launch == n }); i >= 0 {
			c = crashes[i]
		} else if r.Cause == hv.CauseKilled {
			_ = os.Remove(path) // a spare's
			continue
		} else {
			dr.rec.Crashes++
			c.ID, _ = d.store.NextID()
		}
		(&recovery{d: d, crash: c, report: path}).complete()
	}
}

// dup returns a descriptor of f's file in blocking mode that is the caller's.
func dup(f *os.File) (int, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("dup: %w", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}
