package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	grailnet "github.com/grailos/grail/drivervms/net"
)

// Bounds of what comes from outside to one published port: connections, and clients that send datagrams.
const (
	maxClients = 1024
	// acceptPause is how long accepting rests when the host has no descriptors or memory left.
	acceptPause = 50 * time.Millisecond
)

// publication is a published port that is served.
type publication struct {
	grailnet.Publication
	socket *os.File // as it was handed over
	ends   context.CancelFunc
	served sync.WaitGroup
}

// close ends the service and every connection through it.
func (p *publication) close() {
	p.ends()
	p.served.Wait()
	p.socket.Close()
}

// Publish serves a port with a socket of the host's, listening or bound, which it takes over when it succeeds. One that is there
// already stays.
func (n *NAT) Publish(pub grailnet.Publication, socket *os.File) error {
	if !pub.To.IsValid() || !pub.To.Addr().Is4() || pub.To.Port() == 0 {
		return fmt.Errorf("%s is no port of a guest", pub.To)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life.Err() != nil {
		return n.life.Err()
	}
	if n.published[pub.ID] != nil {
		return socket.Close()
	}
	p := &publication{Publication: pub, socket: socket}
	ctx, cancel := context.WithCancel(n.life)
	p.ends = cancel
	if pub.UDP {
		c, err := net.FilePacketConn(socket)
		if err != nil {
			cancel()
			return err
		}
		p.served.Go(func() { n.serveUDP(ctx, p, c) })
	} else {
		l, err := net.FileListener(socket)
		if err != nil {
			cancel()
			return err
		}
		p.served.Go(func() { n.serveTCP(ctx, p, l) })
	}
	n.published[pub.ID] = p
	return nil
}

// Withdraw undoes Publish, and ends the connections. Unknown ones are ignored.
func (n *NAT) Withdraw(id string) {
	n.mu.Lock()
	p := n.published[id]
	delete(n.published, id)
	n.mu.Unlock()
	if p != nil {
		p.close()
	}
}

// Socket returns a duplicate of a published port's socket.
func (n *NAT) Socket(id string) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.published[id]
	if p == nil {
		return -1, fmt.Errorf("%s is not published", id)
	}
	c, err := p.socket.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var derr error
	err = c.Control(func(own uintptr) { fd, derr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, derr)
}

// serveTCP accepts connections until ctx ends.
func (n *NAT) serveTCP(ctx context.Context, p *publication, l net.Listener) {
	over := context.AfterFunc(ctx, func() { l.Close() })
	defer over()
	defer l.Close()
	room := make(chan struct{}, maxClients)
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c, err := l.Accept()
		if err != nil {
			<-room
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		p.served.Go(func() {
			defer func() { <-room }()
			n.inward(ctx, p, c.(*net.TCPConn))
		})
	}
}

// inward brings one connection to the guest. One that the guest refuses ends with a reset.
func (n *NAT) inward(ctx context.Context, p *publication, c *net.TCPConn) {
	dial, cancel := context.WithTimeout(ctx, dialGuest)
	guest, err := n.dialGuest(dial, p.To)
	cancel()
	if err != nil {
		hostConn{c}.abort()
		return
	}
	n.flows.count(&n.flows.tcp, 1)
	defer n.flows.count(&n.flows.tcp, -1)
	join(ctx, guest, hostConn{c})
}

// dialGuest opens a connection to a guest, in the gateway's name.
func (n *NAT) dialGuest(ctx context.Context, to netip.AddrPort) (stream, error) {
	if n.stack == nil {
		c, err := n.dial(ctx, "tcp4", to.String())
		if err != nil {
			return nil, err
		}
		return hostConn{c.(*net.TCPConn)}, nil
	}
	c, err := gonet.DialContextTCP(ctx, n.stack, addressOf(to), ipv4.ProtocolNumber)
	if err != nil {
		return nil, err
	}
	return inwardConn{c}, nil
}

// inwardConn is the guest's end of a connection from outside.
type inwardConn struct{ *gonet.TCPConn }

func (c inwardConn) abort() { c.Close() }

// serveUDP passes datagrams on until ctx ends. Each client has a flow of its own to the guest.
func (n *NAT) serveUDP(ctx context.Context, p *publication, c net.PacketConn) {
	over := context.AfterFunc(ctx, func() { c.Close() })
	defer over()
	defer c.Close()
	var mu sync.Mutex
	clients := map[netip.AddrPort]net.Conn{}
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	for {
		k, from, err := c.ReadFrom(buf[:])
		if err != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		client := from.(*net.UDPAddr).AddrPort()
		mu.Lock()
		guest := clients[client]
		room := len(clients) < maxClients
		mu.Unlock()
		if guest == nil {
			if !room {
				continue
			}
			if guest, err = n.dialGuestUDP(ctx, p.To); err != nil {
				continue
			}
			mu.Lock()
			clients[client] = guest
			mu.Unlock()
			p.served.Go(func() {
				n.flows.count(&n.flows.udp, 1)
				defer n.flows.count(&n.flows.udp, -1)
				answers(ctx, guest, c, from)
				mu.Lock()
				delete(clients, client)
				mu.Unlock()
			})
		}
		_, _ = guest.Write(buf[:k])
	}
}

// answers passes a guest's datagrams to one client until the guest is silent for idleLimit.
func answers(ctx context.Context, guest net.Conn, c net.PacketConn, client net.Addr) {
	over := context.AfterFunc(ctx, func() { guest.Close() })
	defer over()
	defer guest.Close()
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	for {
		_ = guest.SetReadDeadline(time.Now().Add(idleLimit))
		k, err := guest.Read(buf[:])
		if err != nil {
			return
		}
		_, _ = c.WriteTo(buf[:k], client)
	}
}

func (n *NAT) dialGuestUDP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if n.stack == nil {
		return n.dial(ctx, "udp4", to.String())
	}
	remote := addressOf(to)
	return gonet.DialUDP(n.stack, nil, &remote, ipv4.ProtocolNumber)
}
