package usernet

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// How long a connection may take to be made: outwards, and to a guest, whose switch may be away meanwhile.
const (
	dialOut   = 20 * time.Second
	dialGuest = 30 * time.Second
)

// forwardTCP carries on a guest's connection. The guest's attempt is answered once the other end has answered.
func (n *NAT) forwardTCP(r *tcp.ForwarderRequest) {
	id := r.ID()
	to, ok := n.target(wantedBy(id))
	if !ok {
		n.flows.refuse()
		r.Complete(true)
		return
	}
	release := n.flows.take(guestOf(id).Addr(), false)
	if release == nil {
		r.Complete(true)
		return
	}
	defer release()
	ctx, cancel := context.WithTimeout(n.life, dialOut)
	out, err := n.dial(ctx, "tcp4", to.String())
	cancel()
	if err != nil {
		r.Complete(true)
		return
	}
	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue)
	r.Complete(terr != nil)
	if terr != nil {
		out.Close()
		return
	}
	join(n.life, &guestConn{gonet.NewTCPConn(&queue, ep), ep}, hostConn{out.(*net.TCPConn)})
}

// stream is one end of a TCP connection.
type stream interface {
	net.Conn
	CloseWrite() error
	// abort ends the connection with a reset.
	abort()
}

// guestConn is the guest's end.
type guestConn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

func (c *guestConn) abort() {
	c.ep.Abort()
	c.Close()
}

// hostConn is the host's end.
type hostConn struct{ *net.TCPConn }

func (c hostConn) abort() {
	_ = c.SetLinger(0)
	c.Close()
}

// join copies both ways until both ends have said all, or one of them fails, or ctx ends. A failure is passed on as one.
func join(ctx context.Context, a, b stream) {
	over := context.AfterFunc(ctx, func() {
		a.abort()
		b.abort()
	})
	defer over()
	var both sync.WaitGroup
	one := func(to, from stream) {
		if err := pour(to, from); err != nil || to.CloseWrite() != nil {
			a.abort()
			b.abort()
		}
	}
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
	a.Close()
	b.Close()
}

// pourBytes is the size of a copy's buffer.
const pourBytes = 64 << 10

var pourBuffers = sync.Pool{New: func() any { return new([pourBytes]byte) }}

// pour copies until the end of from.
func pour(to, from stream) error {
	buf := pourBuffers.Get().(*[pourBytes]byte)
	defer pourBuffers.Put(buf)
	// Neither end's own methods of copying know the other, and they would allocate.
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buf[:])
	return err
}
