package daemon

import (
	"fmt"
	"os"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
)

// grant is a native VM's end of a disk or a network port, with what the VM's Spec says of it.
type grant struct {
	client *client
	driver *driver      // that serves it
	caps   []hv.CapSpec // FD fields index client.files
}

// geometry is what the two ends of a grant share.
type geometry struct {
	bytes     uint64 // of buffers
	queues    int
	queueSize uint16 // descriptors
	log       bool   // with an in-flight log
}

// newGrant makes memory, doorbells and in-flight log for the attachment att. The VM sees the buffers as the capability memory, whose
// FD and Size are filled in, and the rings as two more of its name: of each part of these, one side has a descriptor for reading alone.
func (d *Daemon) newGrant(dr *driver, att hv.Attachment, memory hv.CapSpec, g geometry) (_ *grant, err error) {
	if g.queueSize > abi.MaxDiskQueueSize {
		return nil, fmt.Errorf("a queue of %d is too large for a grant", g.queueSize)
	}
	if att.ID, err = d.store.NextID(); err != nil {
		return nil, err
	}
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
	if memory.FD, err = add(hv.NewMemory("grail-grant", g.bytes)); err != nil {
		return nil, err
	}
	memory.Size = g.bytes
	both := abi.RightRead | abi.RightWrite
	rings := hv.CapSpec{Kind: abi.CapRings, Name: memory.Name, Rights: both, Size: abi.RingsBytes(uint16(g.queues), g.queueSize)}
	used := hv.CapSpec{Kind: abi.CapUsed, Name: memory.Name, Rights: abi.RightRead, Size: abi.UsedBytes(uint16(g.queues))}
	if rings.FD, err = add(hv.NewMemory("grail-rings", rings.Size)); err != nil {
		return nil, err
	}
	ringsRead, err := add(hv.ForReading(files[rings.FD]))
	if err != nil {
		return nil, err
	}
	usedWrite, err := add(hv.NewMemory("grail-used", used.Size))
	if err != nil {
		return nil, err
	}
	if used.FD, err = add(hv.ForReading(files[usedWrite])); err != nil {
		return nil, err
	}
	att.Regions = []hv.AttachMem{
		{FD: ringsRead, Base: abi.RingsAt, Size: rings.Size, ReadOnly: true},
		{FD: usedWrite, Base: abi.UsedAt, Size: used.Size},
		{FD: memory.FD, Base: abi.BuffersAt, Size: g.bytes},
	}
	att.Log = -1
	if g.log {
		// Region i of the log belongs to queue i (vhost-user, Inflight I/O tracking).
		att.LogSize = (uint64(g.queues)*ring.InflightBytes(g.queueSize) + 4095) &^ 4095
		if att.Log, err = add(hv.NewMemory("grail-inflight", att.LogSize)); err != nil {
			return nil, err
		}
	}
	k := &grant{driver: dr, caps: []hv.CapSpec{memory, rings, used}}
	for i := range g.queues {
		kick, err := add(hv.NewDoorbell())
		if err != nil {
			return nil, err
		}
		call, err := add(hv.NewDoorbell())
		if err != nil {
			return nil, err
		}
		q := abi.QueueAt(i, g.queueSize, 0)
		att.Queues = append(att.Queues, hv.AttachRing{Index: uint16(i), Size: q.Size, Kick: kick, Call: call,
			Desc: q.Desc, Avail: q.Avail, Used: q.Used})
		k.caps = append(k.caps,
			hv.CapSpec{Kind: abi.CapKick, Name: memory.Name, Index: uint32(i), Rights: both, FD: kick},
			hv.CapSpec{Kind: abi.CapCall, Name: memory.Name, Index: uint32(i), Rights: both, FD: call})
	}
	k.client, err = newClient(att, files)
	return k, err
}

// addTo puts the grant into the Spec that l starts.
func (k *grant) addTo(l *hv.Launch) {
	for _, c := range k.caps {
		c.FD = l.Add(k.client.files[c.FD])
		l.Spec.Caps = append(l.Spec.Caps, c)
	}
	l.Spec.Attachments = append(l.Spec.Attachments, k.client.inSpec(l))
}
