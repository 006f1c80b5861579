package blk

import (
	"fmt"
	"math"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// Bounds of what a device offers.
const (
	// MaxQueues is the largest number of queues of one attachment.
	MaxQueues = serve.MaxQueues
	// maxRangeSectors bounds one range of a discard or write-zeroes request, so that a single request
	// cannot keep the device busy for ever: 1 GiB.
	maxRangeSectors = 1 << 21
	// segMax is the largest number of data segments of a request; header and status come on top.
	segMax = abi.MaxDevSegs - 2
)

// Device is a disk as it is offered to clients.
type Device struct {
	Size     uint64 // bytes; what exceeds a whole sector is not offered
	ReadOnly bool
	Queues   int // offered queues, 1..MaxQueues
	// Discard: the backing file or block device can deallocate. Without it discard is not offered, and
	// write-zeroes writes.
	Discard bool
}

// Check reports what is wrong with d, or nil.
func (d Device) Check() error {
	switch {
	case d.Size < virtioblk.SectorSize:
		return fmt.Errorf("disk has %d bytes; a disk needs at least one sector of %d bytes", d.Size, virtioblk.SectorSize)
	case d.Size > math.MaxInt64:
		return fmt.Errorf("disk has %d bytes, which is more than files can have", d.Size)
	case d.Queues < 1 || d.Queues > MaxQueues:
		return fmt.Errorf("%d queues; a disk can have 1 to %d", d.Queues, MaxQueues)
	}
	return nil
}

// Features returns the virtio features that d offers. A vhost-user back end adds its own to them.
func (d Device) Features() uint64 {
	f := guest.DiskFeatures | virtioblk.FeatureSegMax | virtioblk.FeatureBlockSize | virtioblk.FeatureFlush |
		virtioblk.FeatureMultiQueue
	if d.ReadOnly {
		return f | virtioblk.FeatureReadOnly
	}
	f |= virtioblk.FeatureWriteZeroes
	if d.Discard {
		f |= virtioblk.FeatureDiscard
	}
	return f
}

// Config returns struct virtio_blk_config for d (virtio 1.2 §5.2.4).
func (d Device) Config() [virtioblk.ConfigBytes]byte {
	c := virtioblk.Config{
		Capacity: d.Size / virtioblk.SectorSize, SegMax: segMax, BlockSize: virtioblk.SectorSize,
		NumQueues: uint16(d.Queues),
	}
	if !d.ReadOnly {
		c.MaxWriteZeroSectors, c.MaxWriteZeroSegs = maxRangeSectors, serve.MaxRanges
		if d.Discard {
			c.MaxDiscardSectors, c.MaxDiscardSegs, c.DiscardAlignment = maxRangeSectors, serve.MaxRanges, 8
			c.WriteZeroMayUnmap = 1
		}
	}
	return c.Encode()
}

// CheckFeatures refuses a set of features that a client may not have negotiated: one that d does not offer, or
// one without VIRTIO_F_VERSION_1.
func (d Device) CheckFeatures(features uint64) error {
	if extra := features &^ d.Features(); extra != 0 {
		return fmt.Errorf("features %#x were not offered", extra)
	}
	if features&ring.FeatureVersion1 == 0 {
		return fmt.Errorf("legacy virtio is not supported: VIRTIO_F_VERSION_1 is missing")
	}
	return nil
}
