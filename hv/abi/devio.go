package abi

// DevOp is what a DevReq asks for.
type DevOp uint16

// The device operations.
const (
	DevRead        DevOp = iota // preadv: the segments are filled from Offset on; of a CapPacket: one packet, readv
	DevWrite                    // pwritev: the segments are written from Offset on; of a CapPacket: one packet, writev
	DevFlush                    // fdatasync: all earlier completed writes are durable on return
	DevDiscard                  // deallocate [Offset, Offset+Length)
	DevWriteZeroes              // the range reads as zeroes; Flags may hold DevMayUnmap
)

// MaxPacket is the longest packet of a CapPacket, in bytes: a virtio-net header, an Ethernet header with a VLAN tag and
// the largest IP packet. To write more is EMSGSIZE; to read more reads this much.
const MaxPacket = 12 + 18 + 65535

// DevMayUnmap allows DevWriteZeroes to deallocate.
const DevMayUnmap uint16 = 1

// DevSeg is one memory segment of a request: Addr is a guest-virtual address, Len its bytes.
type DevSeg struct {
	Addr uint64
	Len  uint64
}

// DevReq is one device request of a SysDevIO batch; its wire form is DevReqSize bytes in this field order.
// Several requests may refer to parts of one array of DevSeg.
type DevReq struct {
	FD     int32  // a CapDevice, or a CapPacket, for which Offset means nothing and EAGAIN is an answer
	Op     DevOp  // what to do
	Flags  uint16 // DevMayUnmap
	Offset uint64 // bytes from the start of the device
	Length uint64 // bytes, for DevDiscard and DevWriteZeroes
	Segs   uint64 // guest-virtual address of an array of DevSeg, for DevRead and DevWrite
	NSegs  uint32 // number of segments, at most MaxDevSegs
	_      uint32
	Result int64 // OUT: bytes moved, or a negated Linux errno
}

// Sizes of the wire forms, and the largest number of segments of one request (virtio-blk's seg_max and
// Linux's IOV_MAX leave room above it).
const (
	DevReqSize = 48
	DevSegSize = 16
	MaxDevSegs = 256
)
