package usernet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// How long a flow of datagrams may be silent in both directions (RFC 4787 §4.3 asks for 2 minutes), and how long a resolver may think.
const (
	idleLimit = 2 * time.Minute
	dnsLimit  = 3 * time.Second
)

// maxDatagram is the longest payload of a UDP datagram.
const maxDatagram = 65507

// forwardUDP carries on a guest's flow of datagrams.
func (n *NAT) forwardUDP(r *udp.ForwarderRequest) bool {
	id := r.ID()
	wanted := wantedBy(id)
	to, ok := n.target(wanted)
	if !ok {
		n.flows.refuse()
		return false // the stack says that the port is closed
	}
	release := n.flows.take(guestOf(id).Addr(), true)
	if release == nil {
		return true
	}
	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue)
	if terr != nil {
		release()
		return true
	}
	guest := gonet.NewUDPConn(&queue, ep)
	n.work.Go(func() {
		defer release()
		defer guest.Close()
		if wanted.Addr() == n.cfg.Gateway && wanted.Port() == dnsPort {
			n.answerQueries(guest)
			return
		}
		out, err := n.dial(n.life, "udp4", to.String())
		if err != nil {
			return
		}
		defer out.Close()
		exchange(n.life, guest, out)
	})
	return true
}

// exchange copies datagrams both ways until both ends are silent for idleLimit, one of them fails, or ctx ends.
func exchange(ctx context.Context, a, b net.Conn) {
	over := context.AfterFunc(ctx, func() {
		a.Close()
		b.Close()
	})
	defer over()
	var last atomic.Int64 // Unix nanoseconds
	last.Store(time.Now().UnixNano())
	one := func(to, from net.Conn) {
		defer a.Close()
		defer b.Close()
		buf := datagrams.Get().(*[maxDatagram]byte)
		defer datagrams.Put(buf)
		for {
			_ = from.SetReadDeadline(time.Unix(0, last.Load()).Add(idleLimit))
			k, err := from.Read(buf[:])
			if isTimeout(err) && time.Since(time.Unix(0, last.Load())) < idleLimit {
				continue // the other direction is in use
			}
			if err != nil {
				return
			}
			last.Store(time.Now().UnixNano())
			_, _ = to.Write(buf[:k]) // one that does not fit is lost, as on any way
		}
	}
	var both sync.WaitGroup
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
}

var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// maxQueries bounds the queries of one flow that are being answered.
const maxQueries = 16

// answerQueries passes a guest's DNS queries on to the resolvers, for as long as it asks.
func (n *NAT) answerQueries(guest net.Conn) {
	over := context.AfterFunc(n.life, func() { guest.Close() })
	defer over()
	room := make(chan struct{}, maxQueries)
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	for {
		_ = guest.SetReadDeadline(time.Now().Add(idleLimit))
		k, err := guest.Read(buf[:])
		if err != nil {
			return
		}
		query := append([]byte(nil), buf[:k]...)
		select {
		case room <- struct{}{}:
		default:
			continue
		}
		n.work.Go(func() {
			defer func() { <-room }()
			for _, server := range n.resolvers() {
				if answer := n.ask(server, query); answer != nil {
					_, _ = guest.Write(answer)
					return
				}
			}
		})
	}
}

// ask returns a server's answer to a query, or nil.
func (n *NAT) ask(server netip.AddrPort, query []byte) []byte {
	c, err := n.dial(n.life, "udp4", server.String())
	if err != nil {
		return nil
	}
	defer c.Close()
	over := context.AfterFunc(n.life, func() { c.Close() })
	defer over()
	_ = c.SetDeadline(time.Now().Add(dnsLimit))
	if _, err := c.Write(query); err != nil {
		return nil
	}
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	k, err := c.Read(buf[:])
	if err != nil {
		return nil
	}
	return append([]byte(nil), buf[:k]...)
}
