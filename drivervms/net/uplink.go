package net

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring/virtionet"
)

// Uplink is a way out of the switch: a descriptor of which one read or write is one frame behind a header of
// virtionet.HeaderBytes. It does not block. The driver VM alone reads and writes it.
type Uplink struct {
	File     *os.File
	Offloads uint64 // what the other end takes, among vswitch.Offloads
}

// Cap returns the capability by which a driver VM gets u. The descriptor stays u's.
func (u *Uplink) Cap() hv.CapSpec {
	return hv.CapSpec{
		Kind: abi.CapPacket, Name: vswitch.UplinkName, Rights: abi.RightRead | abi.RightWrite, FD: int(u.File.Fd()),
		Config: uplinkConfig(u.Offloads),
	}
}

// uplinkConfig returns the first bytes of the capability's Config: the offloads, little-endian.
func uplinkConfig(offloads uint64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(offloads >> (8 * i))
	}
	return b
}

// Offload flags of TUNSETOFFLOAD (linux/if_tun.h), which golang.org/x/sys lacks.
const (
	tunCsum   = 0x01
	tunTSO4   = 0x02
	tunTSO6   = 0x04
	tunTSOECN = 0x08
)

// OpenTap opens the tap device called name, which is made if there is none (that needs CAP_NET_ADMIN). It exists as long as the
// descriptor, unless it was made persistent. The host's kernel takes every offload.
func OpenTap(name string) (*Uplink, error) {
	fail := func(what string, err error) error { return fmt.Errorf("tap %q: %s: %w", name, what, err) }
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fail("name", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fail("open /dev/net/tun", err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	what := "TUNSETIFF"
	if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err == nil {
		what = "TUNSETVNETHDRSZ"
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, virtionet.HeaderBytes)
	}
	if err == nil {
		what = "TUNSETOFFLOAD"
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tunCsum|tunTSO4|tunTSO6|tunTSOECN)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fail(what, err)
	}
	return &Uplink{File: hv.KeptFile(fd, "tap "+name), Offloads: vswitch.Offloads}, nil
}

// socketBuffer is the size of an uplink socket's buffers, in bytes: some 60 of the largest frames.
const socketBuffer = 4 << 20

// NewSocket returns an uplink to a network stack in another process, and that process's end. Keep a duplicate of the other end: then
// the uplink outlives the process, and the next one goes on with it. offloads is what the stack takes.
func NewSocket(offloads uint64) (u *Uplink, stack *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("uplink socket: %w", err)
	}
	for _, fd := range fds {
		// Without the privilege the host's own limit holds, which is enough to work and less than one would like.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer) != nil {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
		}
	}
	return &Uplink{File: hv.KeptFile(fds[0], "uplink"), Offloads: offloads & vswitch.Offloads}, hv.KeptFile(fds[1], "stack"), nil
}
