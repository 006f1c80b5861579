package daemon

import (
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

func (d *Daemon) attachDevice(r *http.Request) (any, error) {
	var dev api.Device
	if err := decode(r, &dev); err != nil {
		return nil, err
	}
	v, err := d.vm(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	name, err := v.attachDevice(dev)
	return api.Attached{Device: dev, Guest: name}, err
}

func (d *Daemon) detachDevice(r *http.Request) (any, error) {
	var dev api.Device
	if err := decode(r, &dev); err != nil {
		return nil, err
	}
	v, err := d.vm(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return struct{}{}, v.detachDevice(dev)
}

// config returns the VM's configuration, and its present run or nil.
func (v *vm) config() (api.VMConfig, *instance) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.rec.Config, v.inst
}

// setDevices changes what the VM has, and returns when that is on disk.
func (v *vm) setDevices(disks []api.DiskRef, nets []api.NetRef) error {
	v.mu.Lock()
	before := v.rec.Config.Nets
	v.rec.Config.Disks, v.rec.Config.Nets = disks, nets
	rec := v.rec
	v.d.store.PutVMLater(&rec) // under the lock, so that what is written last is what was changed last
	v.mu.Unlock()
	if !slices.Equal(before, nets) {
		v.d.renamed(slices.Concat(before, nets))
	}
	return v.d.store.Sync()
}

// attachDevice gives the VM a device, and returns what a guest that runs calls it. The record comes first: a graild that dies meanwhile leaves at
// most a device in it that the guest has not got, which settle finds.
func (v *vm) attachDevice(dev api.Device) (name string, err error) {
	v.op.Lock()
	defer v.op.Unlock()
	cfg, inst := v.config()
	if inst != nil && cfg.Personality != api.Linux {
		return "", api.Errorf(api.Busy, "VM %s is %s and gets its disks when it starts; stop it first with grailctl stop %s", cfg.Name, cfg.Personality, cfg.Name)
	}
	next := cfg
	switch {
	case (dev.Disk == nil) == (dev.Net == nil):
		return "", api.Errorf(api.Invalid, "expected one disk or one network port")
	case dev.Disk != nil:
		next.Disks = append(slices.Clone(cfg.Disks), *dev.Disk)
	default:
		next.Nets = append(slices.Clone(cfg.Nets), *dev.Net)
	}
	if has(cfg, dev) >= 0 {
		return "", api.Errorf(api.Exists, "VM %s has %s already", cfg.Name, dev)
	}
	if err := checkVM(&next); err != nil {
		return "", err
	}
	if err := v.d.checkDevice(next, dev, inst != nil); err != nil {
		return "", err
	}
	if err := v.setDevices(next.Disks, next.Nets); err != nil {
		return "", err
	}
	if inst == nil {
		return "", nil
	}
	if name, err = v.replug(inst, hv.OpPlug, next, dev); err != nil && !inst.gone() {
		if serr := v.setDevices(cfg.Disks, cfg.Nets); serr != nil {
			v.d.log.Error("attach", "vm", cfg.Name, "error", serr)
		}
		return "", err
	}
	if dev.Net != nil {
		v.d.awaitPort(*dev.Net)
	}
	return name, nil
}

// How long a driver may take to serve a card that was plugged in, before nobody waits for it any more.
const (
	servePatience = 5 * time.Second
	servePause    = 5 * time.Millisecond
)

// awaitPort returns when both directions of a port's card are served: before that, the guest's first frames may be lost.
func (d *Daemon) awaitPort(ref api.NetRef) {
	dr, err := d.driver(ref.Driver)
	if err != nil {
		return
	}
	served := func() bool {
		dr.mu.Lock()
		defer dr.mu.Unlock()
		n := 0
		for _, c := range dr.clients {
			c.mu.Lock()
			if c.att.Disk == ref.Port && c.on != nil && c.on == dr.inst {
				n++
			}
			c.mu.Unlock()
		}
		return n >= 2
	}
	for end := time.Now().Add(servePatience); !served() && time.Now().Before(end); {
		select {
		case <-time.After(servePause):
		case <-d.closing:
			return
		}
	}
}

// detachDevice takes a device away from the VM. The record comes last, for the same reason.
func (v *vm) detachDevice(dev api.Device) error {
	v.op.Lock()
	defer v.op.Unlock()
	cfg, inst := v.config()
	i := has(cfg, dev)
	if i < 0 {
		if dev.Disk != nil && cfg.Root != nil && dev.Disk.Driver == cfg.Root.Driver && dev.Disk.Disk == cfg.Root.Disk {
			return api.Errorf(api.Busy, "%s is the root disk of VM %s and cannot be taken away", dev, cfg.Name)
		}
		return api.Errorf(api.NotFound, "VM %s has no %s; it has %s", cfg.Name, dev, quoted(devicesOf(cfg)))
	}
	if inst != nil && cfg.Personality != api.Linux {
		return api.Errorf(api.Busy, "VM %s is %s and keeps its disks while it runs; stop it first with grailctl stop %s", cfg.Name, cfg.Personality, cfg.Name)
	}
	if dev.Net != nil && i == 0 && len(cfg.Publish) > 0 {
		return api.Errorf(api.Busy, "the published ports of VM %s are reached through %s, which stays therefore", cfg.Name, dev)
	}
	next := cfg
	if dev.Disk != nil {
		dev.Disk = &cfg.Disks[i]
		next.Disks = slices.Delete(slices.Clone(cfg.Disks), i, i+1)
	} else {
		if i == 0 && len(cfg.Publish) > 0 {
			return api.Errorf(api.Busy, "VM %s publishes ports through %s, which cannot be taken away", cfg.Name, dev)
		}
		next.Nets = slices.Delete(slices.Clone(cfg.Nets), i, i+1)
	}
	if inst != nil {
		if _, err := v.replug(inst, hv.OpUnplug, next, dev); err != nil && !inst.gone() {
			return err
		}
	}
	return v.setDevices(next.Disks, next.Nets)
}

// replug has the process of a Linux VM plug or unplug a device; next is what the VM is afterwards.
func (v *vm) replug(inst *instance, op hv.Op, next api.VMConfig, dev api.Device) (name string, err error) {
	f := v.d.foreign(dev)
	if dev.Net != nil {
		told, err := v.d.guestNetwork(next)
		if err != nil {
			return "", err
		}
		if told != nil {
			// The other cards may have been set up by hand since.
			if i := len(told.Interfaces); op == hv.OpPlug {
				told.Interfaces = told.Interfaces[i-1:]
			} else {
				told.Interfaces = nil
			}
			if f.Network, err = json.Marshal(told); err != nil {
				return "", err
			}
		}
	}
	resp, got, err := inst.call(hv.Request{Op: op, Device: &f}, hv.PlugTimeout+callTimeout)
	closeFDs(got)
	if err != nil {
		return "", api.Errorf(api.Busy, "VM %s, %s: %v", v.name(), dev, err)
	}
	return resp.Found, nil
}

// foreign describes a device to a Linux VM's process; its driver need not be there any more.
func (d *Daemon) foreign(dev api.Device) hv.ForeignDevice {
	if dev.Disk != nil {
		return hv.ForeignDevice{Disk: &hv.ForeignDisk{ID: dev.Disk.Disk, Socket: d.portalSocket(dev.Disk.Driver, dev.Disk.Disk)}}
	}
	nic := &hv.ForeignNIC{Socket: d.portalSocket(dev.Net.Driver, dev.Net.Port), MAC: portMAC(dev.Net.Driver, dev.Net.Port)}
	if _, p, err := d.port(*dev.Net); err == nil {
		nic.Queues = p.Queues
	}
	return hv.ForeignDevice{NIC: nic}
}

// checkDevice refuses a device that a VM cannot have beside its others, now if it runs.
func (d *Daemon) checkDevice(next api.VMConfig, dev api.Device, runs bool) error {
	if dev.Net != nil {
		dr, _, err := d.port(*dev.Net)
		if err != nil {
			return err
		}
		dr.mu.Lock()
		defer dr.mu.Unlock()
		if c := dr.holder(dev.Net.Port); runs && c != nil { // QEMU, and the guest with it, would wait for the port
			return dr.portBusy(c)
		}
		return nil
	}
	if err := d.checkDisk(*dev.Disk); err != nil || next.Personality != api.Linux {
		return err
	}
	if _, err := d.foreignDisk(*dev.Disk); err != nil {
		return err
	}
	others := next.Disks[:len(next.Disks)-1]
	if next.Root != nil {
		others = append(slices.Clone(others), *next.Root)
	}
	if slices.ContainsFunc(others, func(r api.DiskRef) bool { return r.Disk == dev.Disk.Disk }) {
		return sameID(dev.Disk.Disk)
	}
	return nil
}

// checkDisk refuses a disk that is not there, or that cannot be used as asked.
func (d *Daemon) checkDisk(ref api.DiskRef) error {
	dr, err := d.driver(ref.Driver)
	if err != nil {
		return err
	}
	dev, err := dr.device(ref.Disk)
	if err != nil {
		return err
	}
	if dev.ReadOnly && !ref.ReadOnly {
		return api.Errorf(api.Invalid, "disk %s/%s is read-only; use --disk %s/%s:ro", ref.Driver, ref.Disk, ref.Driver, ref.Disk)
	}
	return nil
}

// has returns the place of a device among the VM's of its kind, or -1.
func has(cfg api.VMConfig, dev api.Device) int {
	switch {
	case dev.Disk != nil:
		return slices.IndexFunc(cfg.Disks, func(r api.DiskRef) bool { return r.Driver == dev.Disk.Driver && r.Disk == dev.Disk.Disk })
	case dev.Net != nil:
		return slices.Index(cfg.Nets, *dev.Net)
	}
	return -1
}

func devicesOf(cfg api.VMConfig) (names []string) {
	for _, r := range cfg.Disks {
		names = append(names, api.Device{Disk: &r}.String())
	}
	for _, r := range cfg.Nets {
		names = append(names, api.Device{Net: &r}.String())
	}
	return names
}

// settle takes out of an adopted Linux VM's record what its machine has not got: graild was killed while a device came or went.
func (v *vm) settle(inst *instance) {
	v.op.Lock()
	defer v.op.Unlock()
	resp, got, err := inst.call(hv.Request{Op: hv.OpDevices}, hv.PlugTimeout+callTimeout)
	closeFDs(got)
	cfg, now := v.config()
	if now != inst {
		return
	}
	if err != nil {
		v.d.log.Warn("devices of an adopted VM", "vm", v.name(), "error", err)
		return
	}
	there := map[string]bool{}
	for _, dev := range resp.Devices {
		if dev.Disk != nil {
			there[dev.Disk.Socket] = true
		} else if dev.NIC != nil {
			there[dev.NIC.Socket] = true
		}
	}
	disks := slices.DeleteFunc(slices.Clone(cfg.Disks), func(r api.DiskRef) bool { return !there[v.d.portalSocket(r.Driver, r.Disk)] })
	nets := slices.DeleteFunc(slices.Clone(cfg.Nets), func(r api.NetRef) bool { return !there[v.d.portalSocket(r.Driver, r.Port)] })
	if len(disks) == len(cfg.Disks) && len(nets) == len(cfg.Nets) {
		return
	}
	if err := v.setDevices(disks, nets); err != nil {
		v.d.log.Error("devices of an adopted VM", "vm", v.name(), "error", err)
	}
}

// settleLater runs settle when graild is up.
func (v *vm) settleLater(inst *instance) {
	if v.rec.Config.Personality != api.Linux {
		return
	}
	done := make(chan struct{})
	v.d.background.Go(func() {
		go func() {
			defer close(done)
			v.settle(inst)
		}()
		select {
		case <-done:
		case <-v.d.closing: // the next graild does it
		}
	})
}
