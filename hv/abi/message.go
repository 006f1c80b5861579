package abi

// MessageType says what a Message is.
type MessageType string

// The messages of a driver's control channel. From hv to the driver:
const (
	MsgAttach MessageType = "attach" // serve these queues, as Text configures; answered by MsgDone with the same ID
	MsgDetach MessageType = "detach" // stop serving; answered by MsgDone once nothing is in flight
	MsgInject MessageType = "inject" // misbehave on purpose: Text is "fault", "hang", "stall", "deadlock" or "memory"

	// Questions, each answered by a message of the same type and ID. A driver that does not know one is silent.
	MsgNames MessageType = "names" // use these names from now on: Text is the driver's JSON; the answer's is an error, or empty
	MsgShare MessageType = "share" // what attachment ID gets beside the others, from now on: Text is drivervms/share's Config in JSON; the answer's is an error, or empty
	MsgTest  MessageType = "test"  // test yourself, before you are given clients: the answer's Text is empty, or what is wrong
	MsgStats MessageType = "stats" // counters of attachment ID, 0 for what is none's: the answer's Text is a JSON object of numbers
)

// From the driver to hv:
const (
	MsgReady MessageType = "ready" // the driver is up and can take attachments
	MsgDone  MessageType = "done"  // an attach or detach is complete; Text is an error, or empty
	MsgDead  MessageType = "dead"  // a client broke its ring's rules, Text says how; it is no longer served
)

// ArgFail is the second argument of a driver's program that is to stand in for the driver: it has no devices, serves whatever it is asked to, and fails
// each request; a network drops each frame.
const ArgFail = "fail"

// MaxMessage is the largest Message in bytes of JSON.
const MaxMessage = 16384

// Message is one message of a driver's control channel. A read of the CapControl descriptor returns exactly
// one, as JSON; a write sends one.
type Message struct {
	Type   MessageType `json:"type"`
	ID     uint64      `json:"id,omitempty"`     // the attachment
	Text   string      `json:"text,omitempty"`   // see the types
	Attach *Attach     `json:"attach,omitempty"` // with MsgAttach
}

// Attach tells a driver of one client. Descriptors are numbers in the driver's own capability table.
type Attach struct {
	Client   string   `json:"client"`   // for counters and messages
	Disk     string   `json:"disk"`     // Name of the CapDevice that it wants
	ReadOnly bool     `json:"readonly"` // writes are refused even if the device allows them
	Features uint64   `json:"features"` // virtio features negotiated
	Regions  []Region `json:"regions"`  // the client's memory, to be mapped
	Queues   []Queue  `json:"queues"`
	LogFD    int32    `json:"logFD"`   // in-flight log, to be mapped; -1: none
	LogSize  uint64   `json:"logSize"` // bytes
}

// Region is one piece of a client's memory.
type Region struct {
	FD     int32  `json:"fd"`     // a CapGrant
	Base   uint64 `json:"base"`   // the address by which descriptors name its first byte
	Size   uint64 `json:"size"`   // bytes
	Offset uint64 `json:"offset"` // where in FD it starts, bytes
	// ReadOnly says that the driver can only read it.
	ReadOnly bool `json:"readonly,omitempty"`
}

// Queue is one virtqueue of a client; the three addresses are in its address space, as Region.Base.
type Queue struct {
	Index     uint16 `json:"index"`
	Size      uint16 `json:"size"`
	LastAvail uint16 `json:"lastAvail"` // where to go on, when there is no in-flight log
	KickFD    int32  `json:"kickFD"`    // -1: the client polls the driver (never)
	CallFD    int32  `json:"callFD"`    // -1: the client polls for completions
	Desc      uint64 `json:"desc"`
	Avail     uint64 `json:"avail"`
	Used      uint64 `json:"used"`
}
