package abi

import "github.com/grailos/grail/ring"

// The memory that a native client shares with a driver VM comes in three parts, so that neither can forge what the other one says:
//
//   - rings (CapRings): descriptor tables and available rings, and what else the client alone writes. The driver cannot write to it.
//   - used (CapUsed): the used rings. The client cannot write to it.
//   - buffers (CapDisk, CapNet): data. Both write to it.
//
// Descriptors and the driver's Attach name bytes of the three by addresses from here on.
const (
	RingsAt   uint64 = 0
	UsedAt    uint64 = 1 << 24
	BuffersAt uint64 = 1 << 25
)

// Layout of the rings part, in bytes: words, then a block for each queue with its descriptor table and available ring, then for each
// queue RequestBytes a descriptor that are the client's to use, for indirect tables and request headers.
const (
	ringsPage    = 4096
	RingStride   = 12288 // of the blocks: room for MaxDiskQueueSize descriptors
	UsedStride   = 8192  // of the used rings in the used part
	RequestBytes = 128

	// WordEpoch is where the rings' epoch stands, a little-endian uint32 that the host writes. When it changes, the rings are to be
	// started anew, from the used ring's index on: no driver is attached then, and none will be until each queue's acknowledgement
	// is the new epoch.
	WordEpoch = 0
	// WordSwept is the host's own: the last epoch for which it has cleared what former drivers wrote.
	WordSwept = 4
)

// WordAck returns where queue i's acknowledgement stands, a little-endian uint32: the last epoch that the client has started the queue in.
func WordAck(i int) uint64 { return 64 + 16*uint64(i) }

// WordComplaint returns where queue i's complaint stands, a little-endian uint32: 0, or what the driver did wrong, one of the
// Complaint values. The client does not look at the queue any more until the epoch changes.
func WordComplaint(i int) uint64 { return 64 + 16*uint64(i) + 4 }

// What a client complains about.
const (
	ComplaintIndex  uint32 = 1 + iota // the used index runs ahead of what was offered
	ComplaintHead                     // a completion of what was not outstanding
	ComplaintLength                   // a completion that claims more than there was room for
	ComplaintStatus                   // a completion without a status
)

// RingsBytes returns the size of the rings part for so many queues of size descriptors, in bytes.
func RingsBytes(queues, size uint16) uint64 {
	n := RequestsAt(int(queues), queues, size)
	return (n + ringsPage - 1) &^ (ringsPage - 1)
}

// UsedBytes returns the size of the used part for so many queues, in bytes.
func UsedBytes(queues uint16) uint64 { return uint64(queues) * UsedStride }

// RequestsAt returns where the client's own bytes for queue i begin in the rings part.
func RequestsAt(i int, queues, size uint16) uint64 {
	return ringsPage + uint64(queues)*RingStride + uint64(i)*uint64(size)*RequestBytes
}

// QueueAt returns where queue i lies, in the addresses of descriptors. Precondition: size is at most MaxDiskQueueSize.
func QueueAt(i int, size uint16, features uint64) ring.Queue {
	desc := RingsAt + ringsPage + uint64(i)*RingStride
	return ring.Queue{
		Size: size, Features: features,
		Desc:  desc,
		Avail: desc + (uint64(ring.DescBytes(size))+127)&^127,
		Used:  UsedAt + uint64(i)*UsedStride,
	}
}
