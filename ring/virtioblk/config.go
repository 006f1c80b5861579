package virtioblk

import "encoding/binary"

// Feature bits (virtio 1.2 §5.2.3).
const (
	FeatureSizeMax     uint64 = 1 << 1  // VIRTIO_BLK_F_SIZE_MAX
	FeatureSegMax      uint64 = 1 << 2  // VIRTIO_BLK_F_SEG_MAX
	FeatureGeometry    uint64 = 1 << 4  // VIRTIO_BLK_F_GEOMETRY
	FeatureReadOnly    uint64 = 1 << 5  // VIRTIO_BLK_F_RO
	FeatureBlockSize   uint64 = 1 << 6  // VIRTIO_BLK_F_BLK_SIZE
	FeatureFlush       uint64 = 1 << 9  // VIRTIO_BLK_F_FLUSH
	FeatureTopology    uint64 = 1 << 10 // VIRTIO_BLK_F_TOPOLOGY
	FeatureConfigWCE   uint64 = 1 << 11 // VIRTIO_BLK_F_CONFIG_WCE
	FeatureMultiQueue  uint64 = 1 << 12 // VIRTIO_BLK_F_MQ
	FeatureDiscard     uint64 = 1 << 13 // VIRTIO_BLK_F_DISCARD
	FeatureWriteZeroes uint64 = 1 << 14 // VIRTIO_BLK_F_WRITE_ZEROES
)

// DeviceID is the virtio device type of a block device (virtio 1.2 §5).
const DeviceID = 2

// SectorSize is the unit of Capacity and Header.Sector, in bytes, whatever the block size is.
const SectorSize = 512

// ConfigBytes is the length of an encoded Config: struct virtio_blk_config up to the write-zeroes fields.
const ConfigBytes = 60

// Config is the device's configuration space (virtio 1.2 §5.2.4). A field counts only with its feature.
type Config struct {
	Capacity            uint64 // in sectors of 512 bytes
	SizeMax             uint32 // largest segment, bytes (FeatureSizeMax)
	SegMax              uint32 // most data segments a request (FeatureSegMax)
	Cylinders           uint16 // (FeatureGeometry)
	Heads               uint8
	Sectors             uint8
	BlockSize           uint32 // bytes (FeatureBlockSize)
	PhysicalBlockExp    uint8  // log2 of logical blocks a physical block (FeatureTopology)
	AlignmentOffset     uint8  // in logical blocks
	MinIOSize           uint16 // in logical blocks
	OptIOSize           uint32 // in logical blocks
	Writeback           uint8  // 1: write-back cache (FeatureConfigWCE)
	NumQueues           uint16 // (FeatureMultiQueue)
	MaxDiscardSectors   uint32 // a range (FeatureDiscard)
	MaxDiscardSegs      uint32 // ranges a request
	DiscardAlignment    uint32 // in sectors
	MaxWriteZeroSectors uint32 // a range (FeatureWriteZeroes)
	MaxWriteZeroSegs    uint32 // ranges a request
	WriteZeroMayUnmap   uint8  // 1: write-zeroes may deallocate
}

// Encode returns the wire form of c.
func (c *Config) Encode() [ConfigBytes]byte {
	var b [ConfigBytes]byte
	le := binary.LittleEndian
	le.PutUint64(b[0:], c.Capacity)
	le.PutUint32(b[8:], c.SizeMax)
	le.PutUint32(b[12:], c.SegMax)
	le.PutUint16(b[16:], c.Cylinders)
	b[18], b[19] = c.Heads, c.Sectors
	le.PutUint32(b[20:], c.BlockSize)
	b[24], b[25] = c.PhysicalBlockExp, c.AlignmentOffset
	le.PutUint16(b[26:], c.MinIOSize)
	le.PutUint32(b[28:], c.OptIOSize)
	b[32] = c.Writeback
	le.PutUint16(b[34:], c.NumQueues)
	le.PutUint32(b[36:], c.MaxDiscardSectors)
	le.PutUint32(b[40:], c.MaxDiscardSegs)
	le.PutUint32(b[44:], c.DiscardAlignment)
	le.PutUint32(b[48:], c.MaxWriteZeroSectors)
	le.PutUint32(b[52:], c.MaxWriteZeroSegs)
	b[56] = c.WriteZeroMayUnmap
	return b
}

// DecodeConfig returns the configuration in b. Fields beyond the end of b are 0, bytes beyond ConfigBytes are
// ignored: older and newer devices have shorter and longer spaces.
func DecodeConfig(b []byte) Config {
	var w [ConfigBytes]byte
	copy(w[:], b)
	le := binary.LittleEndian
	return Config{
		Capacity: le.Uint64(w[0:]), SizeMax: le.Uint32(w[8:]), SegMax: le.Uint32(w[12:]),
		Cylinders: le.Uint16(w[16:]), Heads: w[18], Sectors: w[19], BlockSize: le.Uint32(w[20:]),
		PhysicalBlockExp: w[24], AlignmentOffset: w[25], MinIOSize: le.Uint16(w[26:]), OptIOSize: le.Uint32(w[28:]),
		Writeback: w[32], NumQueues: le.Uint16(w[34:]),
		MaxDiscardSectors: le.Uint32(w[36:]), MaxDiscardSegs: le.Uint32(w[40:]), DiscardAlignment: le.Uint32(w[44:]),
		MaxWriteZeroSectors: le.Uint32(w[48:]), MaxWriteZeroSegs: le.Uint32(w[52:]), WriteZeroMayUnmap: w[56],
	}
}
