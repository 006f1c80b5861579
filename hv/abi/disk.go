package abi

import "encoding/binary"

// DiskGrant describes what a native client shares with a block driver VM, in the three parts that rings.go lays out.
//
// In Cap.Config, bytes 0 to 59 are a struct virtio_blk_config (virtio 1.2 §5.2.4 Device configuration layout),
// bytes 60 and 61 the queue size and bytes 62 and 63 the number of queues, little-endian.
type DiskGrant struct {
	QueueSize uint16 // descriptors a queue, a power of two
	Queues    uint16 // number of queues
}

// Bounds of a disk grant's geometry.
const (
	MaxDiskQueueSize = 512
	MaxDiskQueues    = 16
)

// DiskConfigSize is the size of struct virtio_blk_config in Cap.Config, in bytes.
const DiskConfigSize = 60

// ParseDiskGrant takes the grant's geometry from a CapDisk's Config.
func ParseDiskGrant(config *[64]byte) DiskGrant {
	return DiskGrant{
		QueueSize: binary.LittleEndian.Uint16(config[60:]),
		Queues:    binary.LittleEndian.Uint16(config[62:]),
	}
}

// Put writes the grant's geometry into a CapDisk's Config.
func (g DiskGrant) Put(config *[64]byte) {
	binary.LittleEndian.PutUint16(config[60:], g.QueueSize)
	binary.LittleEndian.PutUint16(config[62:], g.Queues)
}

// Valid reports whether the geometry is within bounds.
func (g DiskGrant) Valid() bool {
	return g.QueueSize != 0 && g.QueueSize&(g.QueueSize-1) == 0 && g.QueueSize <= MaxDiskQueueSize &&
		g.Queues != 0 && g.Queues <= MaxDiskQueues
}
