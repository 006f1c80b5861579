package vhostuser

import "strconv"

// Request is the number of a message from the front end.
type Request uint32

// Requests of the front end that this package knows (vhost-user protocol, "Front-end message types").
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	GetConfig           Request = 24
	SetConfig           Request = 25
	GetInflightFD       Request = 31
	SetInflightFD       Request = 32
	ResetDevice         Request = 34
	GetMaxMemSlots      Request = 36
	AddMemReg           Request = 37
	RemMemReg           Request = 38
	SetStatus           Request = 39
	GetStatus           Request = 40
)

var requestNames = map[Request]string{
	GetFeatures: "GET_FEATURES", SetFeatures: "SET_FEATURES", SetOwner: "SET_OWNER", ResetOwner: "RESET_OWNER",
	SetMemTable: "SET_MEM_TABLE", SetVringNum: "SET_VRING_NUM", SetVringAddr: "SET_VRING_ADDR",
	SetVringBase: "SET_VRING_BASE", GetVringBase: "GET_VRING_BASE", SetVringKick: "SET_VRING_KICK",
	SetVringCall: "SET_VRING_CALL", SetVringErr: "SET_VRING_ERR", GetProtocolFeatures: "GET_PROTOCOL_FEATURES",
	SetProtocolFeatures: "SET_PROTOCOL_FEATURES", GetQueueNum: "GET_QUEUE_NUM", SetVringEnable: "SET_VRING_ENABLE",
	GetConfig: "GET_CONFIG", SetConfig: "SET_CONFIG", GetInflightFD: "GET_INFLIGHT_FD",
	SetInflightFD: "SET_INFLIGHT_FD", ResetDevice: "RESET_DEVICE", GetMaxMemSlots: "GET_MAX_MEM_SLOTS",
	AddMemReg: "ADD_MEM_REG", RemMemReg: "REM_MEM_REG", SetStatus: "SET_STATUS", GetStatus: "GET_STATUS",
}

// String returns the protocol's name of r without its prefix, or the number.
func (r Request) String() string {
	if s, ok := requestNames[r]; ok {
		return s
	}
	return "request " + strconv.FormatUint(uint64(r), 10)
}

// FeatureProtocol is the virtio feature bit by which protocol features are negotiated
// (VHOST_USER_F_PROTOCOL_FEATURES).
const FeatureProtocol uint64 = 1 << 30

// Protocol features (vhost-user protocol, "Protocol features").
const (
	ProtocolMultiQueue  uint64 = 1 << 0  // MQ: GET_QUEUE_NUM
	ProtocolReplyAck    uint64 = 1 << 3  // REPLY_ACK: any request can ask for an answer
	ProtocolConfig      uint64 = 1 << 9  // CONFIG: the device's configuration space
	ProtocolInflight    uint64 = 1 << 12 // INFLIGHT_SHMFD: the in-flight log
	ProtocolResetDevice uint64 = 1 << 13 // RESET_DEVICE
	ProtocolMemSlots    uint64 = 1 << 15 // CONFIGURE_MEM_SLOTS: regions added and removed singly
	ProtocolStatus      uint64 = 1 << 16 // STATUS
)

// ProtocolSupported is every protocol feature that this package implements.
const ProtocolSupported = ProtocolMultiQueue | ProtocolReplyAck | ProtocolConfig | ProtocolInflight |
	ProtocolResetDevice | ProtocolMemSlots | ProtocolStatus

// Limits of the protocol and of this implementation.
const (
	MaxRegions   = 8   // regions, and descriptors, in one SET_MEM_TABLE
	MaxMemSlots  = 64  // regions in all, with ProtocolMemSlots
	MaxQueues    = 256 // a queue's index has 8 bits in SET_VRING_KICK
	MaxQueueSize = 1024
	MaxConfig    = 256 // bytes of configuration space
)
