package daemon

import (
	"fmt"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/api"
)

// The geometry of a native VM's disk grant. 128 requests in flight, each of which may be indirect, keep any device
// busy; the pool holds 16 MiB of data in flight.
const (
	grantBytes     = 16 << 20
	grantQueues    = 1
	grantQueueSize = 128
)

// diskGrant makes a VM's end of a disk of the driver, as the VM named vm sees it under the name capName.
func (d *Daemon) diskGrant(vm string, ref api.DiskRef, capName string) (*grant, error) {
	dr, err := d.driver(ref.Driver)
	if err != nil {
		return nil, err
	}
	dev, err := dr.device(ref.Disk)
	if err != nil {
		return nil, err
	}
	dev.ReadOnly = dev.ReadOnly || ref.ReadOnly
	dev.Queues = grantQueues
	shape := abi.DiskGrant{QueueSize: grantQueueSize, Queues: grantQueues}
	if !shape.Valid() {
		return nil, fmt.Errorf("disk grant geometry %+v", shape)
	}
	rights := abi.RightRead | abi.RightWrite
	if dev.ReadOnly {
		rights = abi.RightRead
	}
	var config [64]byte
	space := dev.Config()
	copy(config[:], space[:])
	shape.Put(&config)
	att := hv.Attachment{Client: vm, Driver: ref.Driver, Disk: ref.Disk, ReadOnly: dev.ReadOnly, Features: dev.Features()}
	return d.newGrant(dr, att, hv.CapSpec{Kind: abi.CapDisk, Name: capName, Rights: rights, Config: config[:]},
		geometry{bytes: grantBytes, queues: grantQueues, queueSize: grantQueueSize, log: true})
}

// capNames returns the name of each disk or port in its VM: its own, or DRIVER/NAME where the VM has several of one name.
func capNames[T any](refs []T, parts func(T) (driver, name string)) []string {
	count := map[string]int{}
	for _, r := range refs {
		_, name := parts(r)
		count[name]++
	}
	names := make([]string, len(refs))
	for i, r := range refs {
		driver, name := parts(r)
		names[i] = name
		if count[name] > 1 {
			names[i] = driver + "/" + name
		}
	}
	return names
}
