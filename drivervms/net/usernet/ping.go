package usernet

import (
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// pingLimit is how long an echo may take.
const pingLimit = 10 * time.Second

// pinger carries on echo requests (RFC 792), each on a socket of its own, where the host lets this user have such sockets.
type pinger struct {
	n       *NAT
	s       *stack.Stack
	missing string // why there are none
}

func newPinger(n *NAT, s *stack.Stack) *pinger {
	p := &pinger{n: n, s: s}
	if fd, err := pingSocket(); err == nil {
		unix.Close(fd)
	} else {
		p.missing = "echo requests (ping) to the outside: " + err.Error() + "; sysctl net.ipv4.ping_group_range says who may"
	}
	return p
}

func pingSocket() (int, error) {
	return unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
}

// handle takes an ICMP packet for an address other than the gateway's, which the stack answers for itself.
func (p *pinger) handle(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.ICMPv4(pkt.TransportHeader().Slice())
	if len(h) < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4Echo || p.missing != "" {
		return false
	}
	ip := header.IPv4(pkt.NetworkHeader().Slice())
	guest, dst := netip.AddrFrom4(ip.SourceAddress().As4()), netip.AddrFrom4(ip.DestinationAddress().As4())
	if dst == p.n.cfg.Gateway {
		return false
	}
	if _, ok := p.n.target(netip.AddrPortFrom(dst, 1)); !ok { // there are no ports: any number does
		p.n.flows.refuse()
		return true
	}
	release := p.n.flows.take(guest, true)
	if release == nil {
		return true
	}
	request := append(append([]byte(nil), h...), pkt.Data().AsRange().ToSlice()...)
	p.n.work.Go(func() {
		defer release()
		if answer := p.ask(dst, request); answer != nil {
			p.reply(guest, dst, request, answer)
		}
	})
	return true
}

// ask sends an echo request and returns the answer, or nil. The host chooses its own identifier.
func (p *pinger) ask(dst netip.Addr, request []byte) []byte {
	fd, err := pingSocket()
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "ping")
	c, err := net.FilePacketConn(f)
	f.Close()
	if err != nil {
		return nil
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(pingLimit))
	if _, err := c.WriteTo(request, &net.UDPAddr{IP: dst.AsSlice()}); err != nil {
		return nil
	}
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	k, _, err := c.ReadFrom(buf[:])
	if err != nil || k < header.ICMPv4MinimumSize || buf[0] != byte(header.ICMPv4EchoReply) {
		return nil
	}
	return append([]byte(nil), buf[:k]...)
}

// reply sends the answer to the guest, in the name of the one that was asked and with the guest's own identifier.
func (p *pinger) reply(guest, dst netip.Addr, request, answer []byte) {
	h := header.ICMPv4(answer)
	h.SetIdent(header.ICMPv4(request).Ident())
	h.SetChecksum(0)
	h.SetChecksum(^checksum.Checksum(answer, 0))
	r, err := p.s.FindRoute(nic, tcpip.AddrFrom4(dst.As4()), tcpip.AddrFrom4(guest.As4()), ipv4.ProtocolNumber, false)
	if err != nil {
		return
	}
	defer r.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: int(r.MaxHeaderLength()), Payload: buffer.MakeWithData(answer)})
	defer pkt.DecRef()
	_ = r.WritePacket(stack.NetworkHeaderParams{Protocol: header.ICMPv4ProtocolNumber, TTL: r.DefaultTTL()}, pkt)
}
