package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/mgmt/store"
)

// Daemon is one graild.
type Daemon struct {
	dirs    place.Dirs
	log     *slog.Logger
	events  *events
	store   *store.Store
	lock    *os.File
	bootID  string
	started time.Time
	version string
	build   string

	memoryLeft func() (uint64, bool) // hostMemory, but for tests

	mu       sync.Mutex
	vms      map[string]*vm
	drivers  map[string]*driver
	making   map[string]bool // names of drivers being created
	handover *handover
	outputs  map[string]*output // consoles of runs, by the path of the log

	makingConsole   bool
	noConsoles      bool          // no console driver is made any more
	consolesChanged chan struct{} // closed and replaced when a console driver was made

	images sync.Mutex // held while drivers of images come and go, and while a VM begins to use one

	domains *domains
	room    room

	closing    chan struct{}
	closeOnce  sync.Once
	background sync.WaitGroup
}

// ErrRunning reports that another graild serves the same directories.
var ErrRunning = errors.New("another graild runs already")

// Open becomes the graild of dirs: it takes the lock, opens the store and adopts the VMs of its predecessor. Errors:
// ErrRunning.
func Open(dirs place.Dirs, log *slog.Logger, version string) (_ *Daemon, err error) {
	if err := dirs.Make(); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(dirs.Lock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%w in %s", ErrRunning, dirs.State)
	}
	events := newEvents()
	log = slog.New(eventHandler{Handler: log.Handler(), events: events})
	d := &Daemon{dirs: dirs, log: log, events: events, lock: lock, started: time.Now(), version: version,
		vms: map[string]*vm{}, drivers: map[string]*driver{}, making: map[string]bool{},
		outputs: map[string]*output{}, consolesChanged: make(chan struct{}), closing: make(chan struct{}), memoryLeft: hostMemory}
	if d.build, err = place.Build("/proc/self/exe"); err != nil {
		return nil, err
	}
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		d.bootID = strings.TrimSpace(string(b))
	}
	d.store, err = store.Open(dirs.Store(), func(err error) { log.Error("store", "error", err) })
	if err != nil {
		return nil, err
	}
	if err := d.openDomains(); err != nil {
		d.store.Close()
		return nil, err
	}
	if err := d.adopt(); err != nil {
		d.store.Close()
		return nil, err
	}
	if d.handover, err = newHandover(dirs.Handover(), log); err != nil {
		d.store.Close()
		return nil, err
	}
	d.background.Go(d.removeOrphans)
	d.background.Go(d.govern)
	d.background.Go(d.repay)
	return d, nil
}

// Close ends graild. VMs and drivers run on, for the next one to adopt.
func (d *Daemon) Close() error {
	d.endIdleConsoles()
	d.closeOnce.Do(func() { close(d.closing) })
	d.handover.close()
	d.mu.Lock()
	drivers := slices.Collect(maps.Values(d.drivers))
	d.mu.Unlock()
	for _, dr := range drivers {
		<-dr.stopped
		dr.close()
	}
	d.background.Wait()
	err := d.store.Close()
	d.lock.Close()
	return err
}

// driver finds a driver by name.
func (d *Daemon) driver(name string) (*driver, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if dr := d.drivers[name]; dr != nil {
		return dr, nil
	}
	return nil, api.Errorf(api.NotFound, "there is no driver %q; there is %s", name, quoted(slices.Sorted(maps.Keys(d.drivers))))
}

// vm finds a personality VM by name.
func (d *Daemon) vm(name string) (*vm, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v := d.vms[name]; v != nil {
		return v, nil
	}
	return nil, api.Errorf(api.NotFound, "there is no VM %q; grailctl ps lists those that there are", name)
}

// taken refuses a name that something has already. The caller holds d.mu.
func (d *Daemon) taken(name string) error {
	if d.vms[name] != nil {
		return api.Errorf(api.Exists, "the name %s is taken by a VM; choose another one, or remove that with grailctl rm %s", name, name)
	}
	if d.drivers[name] != nil || d.making[name] {
		return api.Errorf(api.Exists, "the name %s is taken by a driver; choose another one, or remove that with grailctl driver rm %s", name, name)
	}
	return nil
}

// CreateVM makes a personality VM. With durable it returns when that is on disk; otherwise a kill of graild may undo it.
func (d *Daemon) CreateVM(cfg api.VMConfig, durable bool) (err error) {
	if err := checkVM(&cfg); err != nil {
		return err
	}
	for _, ref := range cfg.Disks {
		if err := d.checkDisk(ref); err != nil {
			return err
		}
	}
	for _, ref := range cfg.Nets {
		if _, _, err := d.port(ref); err != nil {
			return err
		}
	}
	if err := d.checkTenant(cfg.Tenant); err != nil {
		return err
	}
	if err := d.checkPublished(cfg); err != nil {
		return err
	}
	if cfg.Image != nil {
		release, err := d.useImage(&cfg)
		if err != nil {
			return err
		}
		defer func() {
			release()
			if err != nil {
				d.sweepImages()
			}
		}()
	}
	rec := &store.VM{Config: cfg, State: api.Created, Created: time.Now()}
	d.mu.Lock()
	if err := d.taken(cfg.Name); err != nil {
		d.mu.Unlock()
		return err
	}
	d.vms[cfg.Name] = d.newVM(rec)
	d.mu.Unlock()
	if !durable {
		return nil
	}
	if err := d.store.PutVM(rec); err != nil {
		d.mu.Lock()
		delete(d.vms, cfg.Name)
		d.mu.Unlock()
		return err
	}
	return nil
}

// RemoveVM forgets a VM.
func (d *Daemon) RemoveVM(ctx context.Context, name string, force bool) error {
	v, err := d.vm(name)
	if err != nil {
		if _, derr := d.driver(name); derr != nil && checkName("name", name, maxVMName) == nil && d.forgetLogs(name) {
			return nil // of a VM that is gone
		}
		return err
	}
	if _, err := v.current(); err == nil {
		if !force {
			return api.Errorf(api.Busy, "VM %s runs; stop it first, or use --force", name)
		}
		if err := v.stop(ctx, 0); err != nil && api.KindOf(err) != api.Busy {
			return err
		}
	}
	if err := d.drop(v, -1); err != nil {
		return err
	}
	d.forgetLogs(name)
	return nil
}

// drop forgets a VM that does not run; with a generation other than -1 only if it was not started again since.
func (d *Daemon) drop(v *vm, generation int) error {
	v.op.Lock()
	defer v.op.Unlock()
	v.mu.Lock()
	running, now := v.inst != nil, v.rec.Generation
	v.mu.Unlock()
	if running || generation >= 0 && now != generation {
		return api.Errorf(api.Busy, "VM %s was started again", v.name())
	}
	d.mu.Lock()
	if d.vms[v.name()] != v {
		d.mu.Unlock()
		return nil
	}
	delete(d.vms, v.name())
	d.mu.Unlock()
	if err := d.store.DeleteVM(v.name()); err != nil {
		return err
	}
	err := os.RemoveAll(d.dirs.VM(v.name()))
	if v.rec.Config.Image != nil {
		d.sweepImages()
	}
	return err
}

// removeGrace is how long a VM that is to be removed at its end keeps its result for a client that lost its connection.
const removeGrace = time.Minute

// removeLater forgets a VM that was started with --rm and whose client does not do it.
func (d *Daemon) removeLater(v *vm, generation int) {
	d.background.Go(func() {
		t := time.NewTimer(removeGrace)
		defer t.Stop()
		select {
		case <-t.C:
			if err := d.drop(v, generation); err != nil && api.KindOf(err) != api.Busy {
				d.log.Warn("remove", "vm", v.name(), "error", err)
			}
		case <-d.closing:
		}
	})
}

// VMs lists the VMs by name.
func (d *Daemon) VMs() []api.VM {
	d.mu.Lock()
	var list []*vm
	for _, name := range slices.Sorted(maps.Keys(d.vms)) {
		list = append(list, d.vms[name])
	}
	d.mu.Unlock()
	views := []api.VM{}
	for _, v := range list {
		views = append(views, v.view())
	}
	return views
}

// VM describes one VM, with what its process says now.
func (d *Daemon) VM(name string) (api.VM, error) {
	v, err := d.vm(name)
	if err != nil {
		return api.VM{}, err
	}
	w := v.view()
	if inst, err := v.current(); err == nil {
		if w.Status, err = inst.status(time.Second); err != nil && !inst.gone() {
			w.Notes = append(w.Notes, "its process does not answer: "+err.Error())
		}
	}
	return w, nil
}

// Drivers lists the drivers by name.
func (d *Daemon) Drivers() []api.Driver {
	d.mu.Lock()
	var list []*driver
	for _, name := range slices.Sorted(maps.Keys(d.drivers)) {
		list = append(list, d.drivers[name])
	}
	d.mu.Unlock()
	views := []api.Driver{}
	for _, dr := range list {
		views = append(views, dr.view())
	}
	return views
}

// Driver describes one driver, with what its process says now.
func (d *Daemon) Driver(name string) (api.Driver, error) {
	dr, err := d.driver(name)
	if err != nil {
		return api.Driver{}, err
	}
	v := dr.view()
	dr.mu.Lock()
	inst := dr.inst
	dr.mu.Unlock()
	if inst != nil && v.State == api.Ready {
		v.Status, _ = inst.instance.status(time.Second)
	}
	dr.askNAT(v.NAT)
	return v, nil
}

// CreateDriver makes and starts a driver and returns when it serves.
func (d *Daemon) CreateDriver(ctx context.Context, cfg api.DriverConfig) (err error) {
	if err := checkDriver(&cfg); err != nil {
		return err
	}
	d.mu.Lock()
	if err := d.taken(cfg.Name); err != nil {
		d.mu.Unlock()
		return err
	}
	if other := d.consoleDriverName(); other != "" && cfg.Type == typeConsole {
		d.mu.Unlock()
		return api.Errorf(api.Exists, "there is a console driver, %s; remove it first with grailctl driver rm --force %s: logs stay", other, other)
	}
	d.making[cfg.Name] = true
	d.mu.Unlock()
	dr := d.newDriver(&store.Driver{Config: cfg, Created: time.Now()})
	registered := false
	defer func() {
		d.mu.Lock()
		delete(d.making, cfg.Name)
		d.mu.Unlock()
		if err != nil && !registered {
			dr.close()
			dr.forgetTap()
		}
	}()
	if dr.backings, err = d.openBackings(cfg, 0); err != nil {
		return err
	}
	if err := dr.admit(); err != nil {
		return err
	}
	defer func() {
		if err != nil && !registered {
			dr.giveBack()
		}
	}()
	defer dr.askForRoom(ctx)()
	if err := dr.openUplink(); err != nil {
		return err
	}
	if err := d.store.PutDriver(&dr.rec); err != nil {
		return err
	}
	d.mu.Lock()
	d.drivers[cfg.Name] = dr
	d.mu.Unlock()
	registered = true
	if cfg.Type == typeConsole {
		d.consoleMade()
	}
	go dr.run(nil, nil)
	failed := ""
	err = dr.waitFor(ctx, func() bool {
		if dr.rec.Crashes > 0 {
			failed = dr.lastEnd
			return true
		}
		if dr.state == api.BackOff {
			failed = dr.message
			return true
		}
		if dr.portalErr != nil {
			failed = dr.portalErr.Error()
			return true
		}
		if dr.natEnds.err != nil {
			failed = dr.natEnds.err.Error()
			return true
		}
		return dr.state == api.Ready && (!cfg.Socket || dr.portal != nil) && (dr.uplink == nil || dr.nat != nil)
	})
	if err == nil && failed != "" {
		why, _, _ := strings.Cut(failed, "; next attempt")
		err = api.Errorf(api.CannotRun, "driver %s does not start: %s", cfg.Name, why)
	}
	if err != nil {
		_ = d.RemoveDriver(cfg.Name, true)
	}
	return err
}

// openBackings opens and locks what is behind a driver's disks, and refuses what another driver has. It waits for locks
// for at most patience.
func (d *Daemon) openBackings(cfg api.DriverConfig, patience time.Duration) (list []*backing, err error) {
	defer func() {
		if err != nil {
			for _, b := range list {
				b.file.Close()
			}
			list = nil
		}
	}()
	for _, k := range cfg.Disks {
		b, err := openBacking(k)
		if err != nil {
			return list, err
		}
		list = append(list, b)
		for _, o := range list[:len(list)-1] {
			if b.conflicts(o) {
				return list, api.Errorf(api.Invalid, "disks %s and %s are the same file; add :ro to both, or leave one out", o.id, b.id)
			}
		}
		if holder, disk := d.holderOf(b); holder != "" {
			return list, api.Errorf(api.Busy, "disk %s: %s is disk %s of driver %s already; use that one, or add :ro to both", b.id, b.path, disk, holder)
		}
		if err := b.lock(patience); err != nil {
			return list, err
		}
	}
	return list, nil
}

// holderOf names the driver and disk that stand against the use of b.
func (d *Daemon) holderOf(b *backing) (driver, disk string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, dr := range d.drivers {
		dr.mu.Lock()
		for _, o := range dr.backings {
			if b.conflicts(o) {
				driver, disk = dr.name(), o.id
			}
		}
		dr.mu.Unlock()
	}
	return driver, disk
}

// RemoveDriver ends and forgets a driver.
func (d *Daemon) RemoveDriver(name string, force bool) error {
	dr, err := d.driver(name)
	if err != nil {
		return err
	}
	var users []string
	if dr.rec.Config.Image != "" {
		users = d.rootedIn(name)
	}
	dr.mu.Lock()
	for _, c := range dr.clientList() {
		users = append(users, c.att.Client)
	}
	dr.mu.Unlock()
	if len(users) > 0 && !force && dr.rec.Config.Type == typeConsole {
		return api.Errorf(api.Busy, "driver %s keeps the logs of %s; use --force, after which only the last MiB of what each prints is kept for the next console driver", name, quoted(slices.Compact(users)))
	}
	if len(users) > 0 && !force {
		return api.Errorf(api.Busy, "driver %s has clients: %s; stop them first, or use --force, after which their I/O waits for ever", name, quoted(slices.Compact(users)))
	}
	dr.kill()
	dr.giveBack()
	dr.close()
	dr.forgetTap()
	if dr.rec.Config.Socket {
		for _, k := range dr.rec.Config.Disks {
			_ = os.Remove(d.portalSocket(name, k.ID))
		}
		for _, p := range dr.rec.Config.Ports {
			_ = os.Remove(d.portalSocket(name, p.Name))
		}
	}
	d.mu.Lock()
	delete(d.drivers, name)
	d.mu.Unlock()
	if err := d.store.DeleteDriver(name); err != nil {
		return err
	}
	d.forgetLogs(name)
	return os.RemoveAll(d.dirs.VM(name))
}
