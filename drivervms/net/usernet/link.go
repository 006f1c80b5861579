package usernet

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/ring/virtionet"
)

// queueFrames is how many frames may wait for the switch.
const queueFrames = 1024

// link moves frames between the uplink's far end and the stack. Each stands behind a header of virtionet.HeaderBytes.
type link struct {
	conn    syscall.RawConn
	ep      *channel.Endpoint
	dropped atomic.Uint64
}

// newLink returns a link over f, which does not block and stays the caller's.
func newLink(f *os.File, mac vswitch.MAC, mtu uint16) (*link, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	ep := channel.New(queueFrames, uint32(mtu)+header.EthernetMinimumSize, tcpip.LinkAddress(mac[:]))
	ep.SupportedGSOKind = stack.HostGSOSupported
	ep.LinkEPCapabilities |= stack.CapabilityRXChecksumOffload
	return &link{conn: conn, ep: ep}, nil
}

// receive takes frames from the switch until that is gone, or the file is closed.
func (l *link) receive() error {
	buf := make([]byte, vswitch.UplinkBuffer)
	for {
		var n int
		var rerr error
		err := l.conn.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), buf)
			return rerr != unix.EAGAIN
		})
		switch {
		case err != nil:
			return err
		case rerr == unix.EINTR:
		case rerr != nil:
			return rerr
		case n == 0:
			return io.EOF
		default:
			l.take(buf[:n])
		}
	}
}

// take hands a frame to the stack. Large ones are cut by the stack's own rules; what else the header says is of no use here.
func (l *link) take(b []byte) {
	if len(b) < virtionet.HeaderBytes+header.EthernetMinimumSize || len(b) > vswitch.UplinkBuffer {
		l.dropped.Add(1)
		return
	}
	// The stack keeps what it gets.
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[virtionet.HeaderBytes:])})
	defer pkt.DecRef()
	l.ep.InjectInbound(0, pkt) // the Ethernet header says which protocol
}

// send gives the stack's frames to the switch until ctx ends. While the switch is away they wait, and then get lost in the queue before
// this, as on any wire.
func (l *link) send(ctx context.Context) error {
	var head [virtionet.HeaderBytes]byte
	var segs [][]byte
	for {
		pkt := l.ep.ReadContext(ctx)
		if pkt == nil {
			return ctx.Err()
		}
		h := offloadOf(pkt)
		h.Encode(head[:])
		segs = append(append(segs[:0], head[:]), pkt.AsSlices()...)
		err := l.write(segs)
		clear(segs)
		pkt.DecRef()
		if err != nil {
			return err
		}
	}
}

func (l *link) write(segs [][]byte) error {
	var werr error
	err := l.conn.Write(func(fd uintptr) bool {
		_, werr = unix.Writev(int(fd), segs)
		return werr != unix.EAGAIN
	})
	switch {
	case err != nil:
		return err
	case errors.Is(werr, unix.EPIPE), errors.Is(werr, unix.ECONNRESET):
		return werr
	case werr != nil:
		l.dropped.Add(1)
	}
	return nil
}

// offloadOf returns the header of a packet that is to be sent.
func offloadOf(pkt *stack.PacketBuffer) (h virtionet.Header) {
	g := &pkt.GSOOptions
	if g.Type == stack.GSONone {
		return h
	}
	if g.NeedsCsum {
		h.Flags = virtionet.NeedsCsum
		h.CsumStart, h.CsumOffset = header.EthernetMinimumSize+g.L3HdrLen, g.CsumOffset
	}
	if g.Type == stack.GSOTCPv4 && pkt.Data().Size() > int(g.MSS) {
		h.GSOType, h.GSOSize, h.HdrLen = virtionet.GSOTCPv4, g.MSS, uint16(pkt.HeaderSize())
	}
	return h
}
