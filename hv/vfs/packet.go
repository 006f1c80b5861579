package vfs

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
)

// packet is a host descriptor of which one read or write is one packet: a tap, or a socket that keeps packets apart. Nothing
// on it blocks, whatever the guest's flags say.
type packet struct {
	fd     int
	rights uint32
	label  string
}

// newPacket takes over fd when it succeeds.
func newPacket(s *hv.CapSpec, fd int) (*packet, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR: // a tap
	case unix.S_IFSOCK:
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil {
			return nil, err
		}
		if kind != unix.SOCK_SEQPACKET && kind != unix.SOCK_DGRAM {
			return nil, fmt.Errorf("a socket of type %d does not keep packets apart", kind)
		}
	default:
		return nil, fmt.Errorf("a file of mode %#o is no packet device", st.Mode)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	return &packet{fd: fd, rights: s.Rights, label: s.Name}, nil
}

func (p *packet) read(_ *Call, _ *file, u *uio, _ int64) (uint64, unix.Errno)  { return p.move(u) }
func (p *packet) write(_ *Call, _ *file, u *uio, _ int64) (uint64, unix.Errno) { return p.move(u) }

// perform does the request in w, the wire form of an abi.DevReq.
func (p *packet) perform(c *Call, w []byte) (uint64, unix.Errno) {
	le := binary.LittleEndian
	var need uint32
	switch abi.DevOp(le.Uint16(w[4:])) {
	case abi.DevRead:
		need = abi.RightRead
	case abi.DevWrite:
		need = abi.RightWrite
	default:
		return 0, unix.EINVAL
	}
	if p.rights&need == 0 {
		return 0, unix.EBADF
	}
	total, e := c.devSegs(le.Uint64(w[24:]), le.Uint32(w[32:]))
	if e != 0 {
		return 0, e
	}
	u := &c.in
	u.c, u.write, u.left, u.vecs, u.host, u.local = c, need == abi.RightRead, total, c.vecs, nil, false
	return p.move(u)
}

// move moves one packet with one system call. A packet is moved as a whole or, when some of the guest's memory is not
// there, not at all: one that was read is lost then. What does not fit u is cut off.
func (p *packet) move(u *uio) (uint64, unix.Errno) {
	switch {
	case u.write:
		u.left = min(u.left, abi.MaxPacket)
	case u.left > abi.MaxPacket:
		return 0, unix.EMSGSIZE
	case u.left == 0: // a socket would take it for a packet, and its reader for the end
		return 0, unix.EINVAL
	}
	if u.left == 0 {
		return 0, 0
	}
	defer u.done()
	segs, ok, e := u.take(u.left)
	if e != 0 {
		return 0, e
	}
	if ok && length(segs) == u.left {
		return u.c.hostIO(p.fd, segs, -1, u.write)
	}
	u.done()
	// The memory cannot be lent, or only in too many pieces: the packet takes a detour, whole.
	b := u.c.packetBuf()[:u.left]
	if !u.write {
		if e := u.get(b); e != 0 {
			return 0, e
		}
	}
	u.segs = append(u.segs[:0], b)
	n, e := u.c.hostIO(p.fd, u.segs, -1, u.write)
	if e != 0 || !u.write {
		return n, e
	}
	if _, e := u.put(b[:n]); e != 0 {
		return 0, e
	}
	return n, 0
}

func length(segs [][]byte) (n uint64) {
	for _, s := range segs {
		n += uint64(len(s))
	}
	return n
}

func (c *Call) packetBuf() []byte {
	if c.packet == nil {
		c.packet = make([]byte, abi.MaxPacket)
	}
	return c.packet
}

func (p *packet) stat(st *stat) { st.mode = unix.S_IFSOCK | 0o600 }
func (p *packet) pollFD() int   { return p.fd }
func (p *packet) name() string  { return "grail:packet:" + p.label }
func (p *packet) release()      { unix.Close(p.fd) }
