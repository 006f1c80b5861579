package virtionet

import "encoding/binary"

// Feature bits (virtio 1.2 §5.1.3).
const (
	FeatureCsum       uint64 = 1 << 0  // VIRTIO_NET_F_CSUM: the device takes frames with a partial checksum
	FeatureGuestCsum  uint64 = 1 << 1  // VIRTIO_NET_F_GUEST_CSUM: so does the driver
	FeatureMTU        uint64 = 1 << 3  // VIRTIO_NET_F_MTU
	FeatureMAC        uint64 = 1 << 5  // VIRTIO_NET_F_MAC
	FeatureGuestTSO4  uint64 = 1 << 7  // VIRTIO_NET_F_GUEST_TSO4: the driver takes large TCPv4 frames
	FeatureGuestTSO6  uint64 = 1 << 8  // VIRTIO_NET_F_GUEST_TSO6
	FeatureGuestECN   uint64 = 1 << 9  // VIRTIO_NET_F_GUEST_ECN
	FeatureHostTSO4   uint64 = 1 << 11 // VIRTIO_NET_F_HOST_TSO4: the device takes large TCPv4 frames
	FeatureHostTSO6   uint64 = 1 << 12 // VIRTIO_NET_F_HOST_TSO6
	FeatureHostECN    uint64 = 1 << 13 // VIRTIO_NET_F_HOST_ECN
	FeatureMergeable  uint64 = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF
	FeatureStatus     uint64 = 1 << 16 // VIRTIO_NET_F_STATUS
	FeatureControl    uint64 = 1 << 17 // VIRTIO_NET_F_CTRL_VQ
	FeatureMultiQueue uint64 = 1 << 22 // VIRTIO_NET_F_MQ
)

// DeviceID is the virtio device type of a network device (virtio 1.2 §5).
const DeviceID = 1

// Bits of Config.Status.
const (
	StatusLinkUp   uint16 = 1
	StatusAnnounce uint16 = 2
)

// ConfigBytes is the length of an encoded Config: struct virtio_net_config up to the RSS fields.
const ConfigBytes = 24

// Config is the device's configuration space (virtio 1.2 §5.1.4). A field counts only with its feature.
type Config struct {
	MAC      [6]byte // (FeatureMAC)
	Status   uint16  // (FeatureStatus)
	MaxPairs uint16  // largest number of queue pairs (FeatureMultiQueue)
	MTU      uint16  // bytes, without the Ethernet header (FeatureMTU)
	Speed    uint32  // Mbit/s
	Duplex   uint8   // 1: full
}

// Encode returns the wire form of c.
func (c *Config) Encode() [ConfigBytes]byte {
	var b [ConfigBytes]byte
	le := binary.LittleEndian
	copy(b[:6], c.MAC[:])
	le.PutUint16(b[6:], c.Status)
	le.PutUint16(b[8:], c.MaxPairs)
	le.PutUint16(b[10:], c.MTU)
	le.PutUint32(b[12:], c.Speed)
	b[16] = c.Duplex
	return b
}

// DecodeConfig returns the configuration in b. Fields beyond the end of b are 0, bytes beyond ConfigBytes are
// ignored: older and newer devices have shorter and longer spaces.
func DecodeConfig(b []byte) Config {
	var w [ConfigBytes]byte
	copy(w[:], b)
	le := binary.LittleEndian
	return Config{
		MAC: [6]byte(w[:6]), Status: le.Uint16(w[6:]), MaxPairs: le.Uint16(w[8:]), MTU: le.Uint16(w[10:]),
		Speed: le.Uint32(w[12:]), Duplex: w[16],
	}
}
