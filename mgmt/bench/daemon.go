package main

import (
	"context"
	"fmt"
	"time"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/starter"
)

// daemon is the benchmarks' own graild.
type daemon struct {
	*api.Client
	drivers []string
}

// startDaemon returns the graild, which it starts when it is first called.
func (b *bench) startDaemon() (*daemon, error) {
	if b.daemon == nil {
		c, err := starter.Ensure(b.ctx, b.dirs())
		if err != nil {
			return nil, err
		}
		b.daemon = &daemon{Client: c}
	}
	return b.daemon, nil
}

// driverMemory is the guest memory of a driver VM, in bytes.
const driverMemory = 64 << 20

// heartbeat is the period in which a driver VM must show that it lives.
const heartbeat = 50 * time.Millisecond

// startDriver starts a driver VM that serves the file at path, and returns its vhost-user socket. set changes how the driver is made.
func (b *bench) startDriver(name, path string, set ...func(*api.DriverConfig)) (socket string, err error) {
	d, err := b.startDaemon()
	if err != nil {
		return "", err
	}
	cfg := api.DriverConfig{
		Name: name, Type: "blk", Engine: b.engine, MemoryBytes: driverMemory, HeartbeatMs: int(heartbeat.Milliseconds()),
		Disks: []api.Disk{{ID: "disk", Path: path}}, Socket: true,
	}
	for _, f := range set {
		f(&cfg)
	}
	v, err := d.CreateDriver(b.ctx, api.CreateDriver{Config: cfg})
	if err != nil {
		return "", err
	}
	d.drivers = append(d.drivers, name)
	if len(v.Disks) != 1 || v.Disks[0].Socket == "" {
		return "", fmt.Errorf("driver %s offers no socket: %+v", name, v.Disks)
	}
	return v.Disks[0].Socket, nil
}

// removeDriver ends a driver VM, whoever uses it.
func (b *bench) removeDriver(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := b.daemon.RemoveDriver(ctx, name, true); err != nil {
		b.progress("remove driver %s: %v", name, err)
	}
}

// stopDaemon ends every VM, every driver VM and the graild.
func (b *bench) stopDaemon() {
	if b.daemon == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	vms, err := b.daemon.VMs(ctx)
	if err != nil {
		b.progress("list VMs: %v", err)
	}
	for _, v := range vms {
		if err := b.daemon.RemoveVM(ctx, v.Name, true); err != nil {
			b.progress("remove VM %s: %v", v.Name, err)
		}
	}
	list, err := b.daemon.Drivers(ctx)
	if err != nil {
		b.progress("list drivers: %v", err)
	}
	for _, v := range list {
		b.removeDriver(v.Name)
	}
	if err := b.daemon.Shutdown(ctx); err != nil && !api.Down(err) {
		b.progress("end graild: %v", err)
	}
}
