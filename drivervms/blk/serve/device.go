package serve

import "github.com/grailos/grail/hv/abi"

// Op is one device operation.
type Op struct {
	FD     int32 // the device
	Kind   abi.DevOp
	Flags  uint16   // abi.DevMayUnmap
	Offset uint64   // bytes
	Length uint64   // bytes; for DevRead and DevWrite the sum of Segs
	Segs   [][]byte // for DevRead and DevWrite: memory of the client, which it may change meanwhile
	// Shared says that other clients want something, too, so that it is worth more than usual if the host need not be asked.
	Shared bool
	Result int64 // OUT: bytes moved, or a negated Linux errno
	Left   bool  // OUT: the host was asked, which costs so much that it should be asked for much at once
}

// Device performs operations. The Server has at most two calls in progress, one of which is all flushes and the
// other one has none.
type Device interface {
	// Do performs ops and sets each one's Result. Their order is undefined, but a flush covers every
	// write of a Do that has returned. It does not keep ops. There are at most abi.MaxDevBatch of them,
	// each with at most abi.MaxDevSegs segments, and at most MaxSegments segments in all.
	Do(ops []Op)
}

// MaxSegments is the largest number of segments in one Device.Do.
const MaxSegments = 4096

// Disk is a device as clients see it.
type Disk struct {
	Name     string
	FD       int32
	Size     uint64 // bytes; what exceeds a whole sector is not used
	ReadOnly bool
}
