package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/personalities/linux/agent"
	"github.com/grailos/grail/vcpu/qemu"
)

// How long a guest may take to find a device that was plugged in, and to give it up.
const (
	foundLimit  = 30 * time.Second
	removeLimit = 20 * time.Second
)

// device is a disk or a network card that the machine has.
type device struct {
	hv.ForeignDevice
	id string // in QEMU
}

func (d *device) disk() qemu.Disk { return qemu.Disk{ID: d.id, Socket: d.Disk.Socket} }

func (d *device) nic() qemu.NIC {
	return qemu.NIC{ID: d.id, Socket: d.NIC.Socket, MAC: d.NIC.MAC, Queues: d.NIC.Queues}
}

// inGuest is what the guest knows it by.
func (d *device) inGuest() agent.Device {
	if d.Disk != nil {
		return agent.Device{Serial: d.Disk.ID}
	}
	return agent.Device{MAC: d.NIC.MAC}
}

// is reports whether both are the same for the guest.
func (d *device) is(o *hv.ForeignDevice) bool {
	if d.Disk != nil {
		return o.Disk != nil && o.Disk.ID == d.Disk.ID
	}
	return o.NIC != nil && o.NIC.MAC == d.NIC.MAC
}

// add notes a device and gives it a name that none has had before. The caller holds v.plugging, or is alone.
func (v *vm) add(f hv.ForeignDevice) *device {
	f.Network = nil
	kind := "disk"
	if f.NIC != nil {
		kind = "net"
	}
	v.devices = append(v.devices, device{f, fmt.Sprintf("%s%d", kind, v.numbers)})
	v.numbers++
	return &v.devices[len(v.devices)-1]
}

// plugged returns the devices that the machine has, once none comes or goes.
func (v *vm) plugged() []hv.ForeignDevice {
	v.plugging.Lock()
	defer v.plugging.Unlock()
	v.mu.Lock()
	m := v.machine
	v.mu.Unlock()
	v.lost(m)
	var list []hv.ForeignDevice
	for _, d := range v.devices {
		list = append(list, d.ForeignDevice)
	}
	return list
}

// lost forgets the devices that the guest has let go of by itself. The caller holds v.plugging.
func (v *vm) lost(m *qemu.VM) {
	if m == nil { // not started yet
		return
	}
	there := map[string]bool{}
	for _, d := range m.Disks() {
		there[d.ID] = true
	}
	for _, n := range m.NICs() {
		there[n.ID] = true
	}
	v.devices = slices.DeleteFunc(v.devices, func(d device) bool { return !there[d.id] })
}

// find returns the device that is the same for the guest, or nil. The caller holds v.plugging.
func (v *vm) find(o *hv.ForeignDevice) *device {
	i := slices.IndexFunc(v.devices, func(d device) bool { return d.is(o) })
	if i < 0 {
		return nil
	}
	return &v.devices[i]
}

// change runs f, which makes a device come or go, when the guest is up.
func (v *vm) change(req *hv.ForeignDevice, f func(ctx context.Context, m *qemu.VM, a *agent.Client) error) error {
	if req == nil || (req.Disk == nil) == (req.NIC == nil) {
		return errors.New("expected a disk or a network card")
	}
	ctx, cancel := context.WithTimeout(v.ctx, hv.PlugTimeout)
	defer cancel()
	v.plugging.Lock()
	defer v.plugging.Unlock()
	select {
	case <-v.ready:
	case <-ctx.Done():
		return errors.New("the guest is still booting, or is ending")
	}
	v.mu.Lock()
	m, a := v.machine, v.agent
	v.mu.Unlock()
	v.lost(m)
	err := f(ctx, m, a)
	if errors.Is(err, agent.ErrGuest) {
		// The guest's own words say enough.
		_, text, _ := strings.Cut(err.Error(), agent.ErrGuest.Error()+": ")
		err = fmt.Errorf("%w: %s", agent.ErrGuest, text)
	}
	return err
}

// plug plugs a device in and returns what the guest calls it. If the guest does not take it, it is taken out again.
func (v *vm) plug(req *hv.ForeignDevice) (name string, err error) {
	err = v.change(req, func(ctx context.Context, m *qemu.VM, a *agent.Client) error {
		d := v.find(req)
		if d == nil {
			d = v.add(*req)
			if d.Disk != nil {
				err = m.AddDisk(ctx, d.disk())
			} else {
				err = m.AddNIC(ctx, d.nic())
			}
			if errors.Is(err, qemu.ErrNoSlot) {
				err = fmt.Errorf("%w; one that is attached before the VM starts needs none", err)
			}
			if err != nil {
				v.forget(d.id)
				return err
			}
		} else if d.Disk != nil && *d.Disk != *req.Disk || d.NIC != nil && *d.NIC != *req.NIC {
			return errors.New("the machine has another device with that disk ID or MAC address")
		}
		name, err = a.AwaitDevice(ctx, d.inGuest(), foundLimit)
		if err != nil {
			return errors.Join(err, v.takeOut(ctx, m, d)) // no guest's kernel to ask: it has not found it
		}
		return network(ctx, a, req)
	})
	return name, err
}

// unplug has the guest release a device and takes it out.
func (v *vm) unplug(req *hv.ForeignDevice) error {
	return v.change(req, func(ctx context.Context, m *qemu.VM, a *agent.Client) error {
		if d := v.find(req); d != nil {
			err := a.ReleaseDevice(ctx, d.inGuest())
			if err == nil {
				err = v.takeOut(ctx, m, d)
			}
			if err != nil {
				return err
			}
		}
		return network(ctx, a, req)
	})
}

// takeOut takes a device out that the guest has released, or releases when it is asked.
func (v *vm) takeOut(ctx context.Context, m *qemu.VM, d *device) error {
	remove := m.RemoveNIC
	if d.Disk != nil {
		remove = m.RemoveDisk
	}
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	if err := remove(ctx, d.id); err != nil && !errors.Is(err, qemu.ErrNoDevice) { // it is gone when the guest has switched its slot off
		return err
	}
	v.forget(d.id)
	return nil
}

func (v *vm) forget(id string) {
	v.devices = slices.DeleteFunc(v.devices, func(d device) bool { return d.id == id })
}

// network tells the agent what req says.
func network(ctx context.Context, a *agent.Client, req *hv.ForeignDevice) error {
	if len(req.Network) == 0 {
		return nil
	}
	var n agent.Network
	if err := json.Unmarshal(req.Network, &n); err != nil {
		return fmt.Errorf("the guest's network: %w", err)
	}
	return a.SetNetwork(ctx, n)
}
