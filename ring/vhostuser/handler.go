package vhostuser

import "github.com/grailos/grail/ring"

// Handler is the device behind a Backend. Its methods are called one at a time, from the goroutine that runs
// Backend.Serve. Descriptors are borrowed: valid during the call, except where Start says more.
//
// An error from a method is reported to the front end where the protocol allows that, and ends the session
// where it does not.
type Handler interface {
	// Features returns the virtio features offered, without FeatureProtocol, which is always offered.
	Features() uint64

	// ProtocolFeatures returns the protocol features wanted; those in ProtocolSupported are offered.
	ProtocolFeatures() uint64

	// Queues returns the number of queues, 1..MaxQueues.
	Queues() uint16

	// Config returns size bytes of the device's configuration space from offset on. Both are bounded so that
	// offset+size <= MaxConfig. Bytes that the device does not have are zeros.
	Config(offset, size uint32) ([]byte, error)

	// SetConfig changes the configuration space; devices without writable fields return an error.
	SetConfig(offset uint32, data []byte) error

	// SetMemory replaces the front end's memory. No queue runs during the call.
	SetMemory(regions []MemRegion) error

	// SetInflight supplies the memory of the in-flight log, for every queue started from now on. No queue runs
	// during the call. A queue's region lies at Offset + index*ring.InflightBytes(QueueSize).
	SetInflight(log InflightArea) error

	// Start begins to process a queue. Kick stays open until Stop returns, Call and Err until Stop or a
	// SetCall returns.
	Start(q QueueState) error

	// SetCall replaces the doorbell that is rung for completions of a running queue; -1 means none. The
	// handler rings the new one once, since completions may have come in between.
	SetCall(index int, call int) error

	// Stop ends the processing of a running queue and returns the next available index. When it returns, no
	// request of the queue touches the front end's memory any more: each was completed, or stands in the
	// in-flight log.
	Stop(index int) (lastAvail uint16, err error)

	// Disconnected is the last call: the session is over, every queue was stopped. err is nil when the front
	// end closed the connection between two messages.
	Disconnected(err error)
}

// SingleHandler is a Handler that is another device to a front end without ProtocolMultiQueue, which cannot learn
// the number of queues: a network device has one pair.
type SingleHandler interface {
	Handler

	// Single returns the number of queues that such a front end has, 1..Queues(), and the virtio features that
	// are not for it. They are withdrawn once it has set protocol features, not before: some front ends ask for
	// the features first, and do not ask again. Start never sees them without ProtocolMultiQueue. Both results
	// stay the same.
	Single() (queues uint16, without uint64)
}

// QueueState is a complete attachment of one queue.
type QueueState struct {
	Index     int
	Ring      ring.Queue // guest-physical addresses, negotiated features
	LastAvail uint16     // next available index; a log that is in use knows better

	// Descriptors with eventfd semantics, set to non-blocking; -1 means none: without Kick the device polls,
	// without Call the driver does. They are the peer's: what they really are is not known.
	Kick, Call, Err int
}

// InflightArea is the memory of the in-flight log.
type InflightArea struct {
	FD        int
	Offset    uint64 // where the log starts in FD
	Size      uint64 // bytes
	Queues    uint16
	QueueSize uint16 // largest size of a queue
	Sealed    bool   // as in MemRegion
}
