package abi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// CapKind says what a capability is.
type CapKind uint32

// The kinds of capability.
const (
	CapNone    CapKind = iota
	CapControl         // a driver's control channel: one Message a read or write
	CapStatus          // a driver's status page, to be mapped: see Status
	CapDevice          // a host block device or file: SysDevIO, pread, pwrite, fdatasync
	CapDisk            // the buffers of a client's grant for one disk, to be mapped: see DiskGrant
	CapKick            // doorbell from client to driver, eventfd semantics; Index is the queue
	CapCall            // doorbell from driver to client, eventfd semantics; Index is the queue
	CapGrant           // memory of another VM, to be mapped
	CapLog             // an in-flight log, to be mapped
	CapNet             // the buffers of a client's grant for one network port, to be mapped: see hv/guest.NetGrant
	CapPacket          // a packet device, a tap or a socket: one read or write is one packet, and none blocks
	CapState           // memory in which a driver keeps what its successor is to know, to be mapped: see hv/state
	CapRings           // the part of a client's grant that the client alone writes, to be mapped: see RingsAt
	CapUsed            // the part of a client's grant that the driver alone writes, to be mapped for reading: see UsedAt
)

// Rights of a capability.
const (
	RightRead  uint32 = 1 << 0
	RightWrite uint32 = 1 << 1
)

// Cap is one entry of the capability table that SysCaps returns. Its wire form is CapSize bytes.
type Cap struct {
	FD     int32    // the file descriptor that stands for the capability in the guest
	Kind   CapKind  // what it is
	Rights uint32   // RightRead, RightWrite
	Index  uint32   // queue number of a doorbell, else 0
	Size   uint64   // bytes of memory or of the device, 0 where it makes no sense
	Name   string   // disk ID or other name; at most 40 bytes
	Config [64]byte // CapDisk: see DiskGrant; CapNet: see hv/guest.NetGrant; CapPacket: what its owner says of it
}

// CapSize is the size of Cap's wire form, in bytes.
const CapSize = 128

const capNameSize = 40

// ErrCapTable reports a capability table whose size is no multiple of CapSize.
var ErrCapTable = errors.New("abi: capability table of odd size")

// AppendCap appends c's wire form to b. A name longer than 40 bytes is an error.
func AppendCap(b []byte, c Cap) ([]byte, error) {
	if len(c.Name) > capNameSize {
		return b, fmt.Errorf("abi: capability name %q is longer than %d bytes", c.Name, capNameSize)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(c.FD))
	b = binary.LittleEndian.AppendUint32(b, uint32(c.Kind))
	b = binary.LittleEndian.AppendUint32(b, c.Rights)
	b = binary.LittleEndian.AppendUint32(b, c.Index)
	b = binary.LittleEndian.AppendUint64(b, c.Size)
	var name [capNameSize]byte
	copy(name[:], c.Name)
	b = append(b, name[:]...)
	return append(b, c.Config[:]...), nil
}

// ParseCaps decodes a capability table. Errors: ErrCapTable.
func ParseCaps(b []byte) ([]Cap, error) {
	if len(b)%CapSize != 0 {
		return nil, ErrCapTable
	}
	caps := make([]Cap, 0, len(b)/CapSize)
	for ; len(b) > 0; b = b[CapSize:] {
		c := Cap{
			FD:     int32(binary.LittleEndian.Uint32(b)),
			Kind:   CapKind(binary.LittleEndian.Uint32(b[4:])),
			Rights: binary.LittleEndian.Uint32(b[8:]),
			Index:  binary.LittleEndian.Uint32(b[12:]),
			Size:   binary.LittleEndian.Uint64(b[16:]),
		}
		name, _, _ := bytes.Cut(b[24:24+capNameSize], []byte{0})
		c.Name = string(name)
		copy(c.Config[:], b[64:CapSize])
		caps = append(caps, c)
	}
	return caps, nil
}
