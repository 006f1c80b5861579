package daemon

import (
	"fmt"
	"os"

	"github.com/grailos/grail/drivervms/blk"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/ring"
)

// The geometry of a native VM's disk grant. 128 requests in flight, each of which may be indirect, keep any device
// busy; the pool holds 16 MiB of data in flight.
const (
	grantBytes     = 16 << 20
	grantQueues    = 1
	grantQueueSize = 128
)

// disk is a client's end of a disk with what its VM's Spec says of it.
type disk struct {
	client *client
	caps   []hv.CapSpec // FD fields index client.files
}

// newDisk makes memory, doorbells and in-flight log for the disk dev of a driver, as the VM named vm sees it under the
// name capName.
func (d *Daemon) newDisk(vm string, ref api.DiskRef, dev blk.Device, capName string) (_ *disk, err error) {
	dev.ReadOnly = dev.ReadOnly || ref.ReadOnly
	dev.Queues = grantQueues
	geometry := abi.DiskGrant{QueueSize: grantQueueSize, Queues: grantQueues}
	if !geometry.Valid(grantBytes) {
		return nil, fmt.Errorf("disk grant geometry %+v does not fit %d bytes", geometry, grantBytes)
	}
	layout, err := ring.LayoutOf(grantQueueSize)
	if err != nil {
		return nil, err
	}
	if layout.Bytes > abi.QueueStride {
		return nil, fmt.Errorf("a queue of %d needs %d bytes, more than %d", grantQueueSize, layout.Bytes, abi.QueueStride)
	}
	id, err := d.store.NextID()
	if err != nil {
		return nil, err
	}

	k := &disk{}
	var files []*os.File
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	add := func(f *os.File, err error) (int, error) {
		if err != nil {
			return -1, err
		}
		files = append(files, f)
		return len(files) - 1, nil
	}

	att := hv.Attachment{ID: id, Client: vm, Driver: ref.Driver, Disk: ref.Disk, ReadOnly: dev.ReadOnly, Features: dev.Features()}
	memory, err := add(hv.NewMemory("grail-grant", grantBytes))
	if err != nil {
		return nil, err
	}
	att.Regions = []hv.AttachMem{{FD: memory, Size: grantBytes}}
	// Region i of the log belongs to queue i (vhost-user, Inflight I/O tracking).
	att.LogSize = (grantQueues*ring.InflightBytes(grantQueueSize) + 4095) &^ 4095
	if att.Log, err = add(hv.NewMemory("grail-inflight", att.LogSize)); err != nil {
		return nil, err
	}
	rights := abi.RightRead | abi.RightWrite
	if dev.ReadOnly {
		rights = abi.RightRead
	}
	var config [64]byte
	space := dev.Config()
	copy(config[:], space[:])
	geometry.Put(&config)
	k.caps = append(k.caps, hv.CapSpec{Kind: abi.CapDisk, Name: capName, Rights: rights, FD: memory, Size: grantBytes, Config: config[:]})
	for i := range grantQueues {
		kick, err := add(hv.NewDoorbell())
		if err != nil {
			return nil, err
		}
		call, err := add(hv.NewDoorbell())
		if err != nil {
			return nil, err
		}
		q := layout.At(geometry.QueueOffset(i), 0)
		att.Queues = append(att.Queues, hv.AttachRing{Index: uint16(i), Size: q.Size, Kick: kick, Call: call,
			Desc: q.Desc, Avail: q.Avail, Used: q.Used})
		both := abi.RightRead | abi.RightWrite
		k.caps = append(k.caps,
			hv.CapSpec{Kind: abi.CapKick, Name: capName, Index: uint32(i), Rights: both, FD: kick},
			hv.CapSpec{Kind: abi.CapCall, Name: capName, Index: uint32(i), Rights: both, FD: call})
	}
	k.client, err = newClient(att, files)
	return k, err
}

// addTo puts the disk into the Spec that l starts.
func (k *disk) addTo(l *hv.Launch) {
	for _, c := range k.caps {
		c.FD = l.Add(k.client.files[c.FD])
		l.Spec.Caps = append(l.Spec.Caps, c)
	}
	l.Spec.Attachments = append(l.Spec.Attachments, k.client.inSpec(l))
}

// capNames returns the name of each disk in its VM: the disk's own, or DRIVER/DISK where the VM has several of one name.
func capNames(refs []api.DiskRef) []string {
	count := map[string]int{}
	for _, r := range refs {
		count[r.Disk]++
	}
	names := make([]string, len(refs))
	for i, r := range refs {
		names[i] = r.Disk
		if count[r.Disk] > 1 {
			names[i] = r.Driver + "/" + r.Disk
		}
	}
	return names
}
