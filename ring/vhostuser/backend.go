package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Backend serves one connection of a front end.
type Backend struct {
	conn *conn
	s    *session
}

// NewBackend returns the back end on c for handler h. It owns c from here on: run Serve.
func NewBackend(c *net.UnixConn, h Handler) *Backend {
	return &Backend{conn: newConn(c), s: newSession(h)}
}

// Serve processes messages until the front end closes the connection, breaks the protocol, or ctx ends. It then
// stops every running queue, calls Handler.Disconnected, and closes the connection and every descriptor that
// the front end sent. Errors: nil when the front end closed between two messages; ctx's; ErrMessage; the
// handler's; the socket's.
func (b *Backend) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { b.conn.SetDeadline(time.Unix(1, 0)) })
	err := b.serve()
	stop()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	b.s.close(err)
	b.conn.Close()
	return err
}

func (b *Backend) serve() error {
	for {
		m, err := b.conn.receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		reply, err := b.s.handle(&m)
		if reply != nil {
			if e := b.conn.send(reply); e != nil {
				return errors.Join(err, e)
			}
		}
		if err != nil {
			return fmt.Errorf("%v: %w", m.req, err)
		}
	}
}
