package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

var (
	// ErrVersion reports an agent that speaks another version of the protocol.
	ErrVersion = errors.New("agent: the guest's agent speaks another version of the protocol")
	// ErrClosed reports a connection that was closed on this side.
	ErrClosed = errors.New("agent: connection closed")
	// ErrGuest is wrapped by every error that the guest itself reports.
	ErrGuest = errors.New("in the guest")
)

// Client is a connection to a guest's agent. Any goroutine may use it, and any number of programs may run at a time.
type Client struct {
	rw  io.ReadWriteCloser
	out *Writer

	// Hello is the agent's.
	Hello Hello

	mu    sync.Mutex // guards what follows
	next  uint32
	execs map[uint32]*execution
	calls map[uint32]chan Reply
	err   error // why the connection is of no more use
	done  chan struct{}
}

// helloAgain is after how long the hello is sent once more. It then stands behind so many zero bytes that a guest which waits for the rest of
// a frame of an earlier host has it.
const helloAgain = time.Second

// Dial says hello on a connected stream, and returns when the agent has answered: that can be long before the guest is up. When
// ctx ends first, rw is closed. The Client owns rw from then on. Errors: ErrVersion, ErrProtocol, those of rw, ctx.Err.
func Dial(ctx context.Context, rw io.ReadWriteCloser) (*Client, error) {
	var nonce [16]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, err
	}
	mine := Hello{Nonce: hex.EncodeToString(nonce[:]), Version: Version}
	payload, err := Encode(mine)
	if err != nil {
		return nil, err
	}
	c := &Client{rw: rw, out: NewWriter(rw), execs: make(map[uint32]*execution), calls: make(map[uint32]chan Reply), done: make(chan struct{})}
	answered := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { _ = rw.Close() })
	said := make(chan error, 1)
	go func() { said <- sayHello(c.out, rw, payload, answered) }()
	in := NewReader(rw)
	for {
		f, err := in.Hello()
		if err == nil && (Decode(f.Payload, &c.Hello) != nil || c.Hello.Nonce != mine.Nonce) {
			continue // another host's, or none
		}
		close(answered)
		if err != nil {
			return nil, dialError(ctx, rw, err)
		}
		break
	}
	// A hello may be half-way out; what follows must come behind it. A guest that answers and does not read is cut off by ctx.
	if err := <-said; err != nil {
		return nil, dialError(ctx, rw, err)
	}
	if !stop() {
		return nil, dialError(ctx, rw, ctx.Err())
	}
	h := &c.Hello
	h.Agent, h.Kernel, h.Arch, h.Failure = Clean(h.Agent), Clean(h.Kernel), Clean(h.Arch), Clean(h.Failure)
	if h.Version != Version {
		return nil, errors.Join(fmt.Errorf("%w: %d, expected %d", ErrVersion, h.Version, Version), rw.Close())
	}
	go c.receive(in)
	return c, nil
}

// sayHello writes the hello until it is answered.
func sayHello(out *Writer, rw io.Writer, payload []byte, answered <-chan struct{}) error {
	hello := Frame{Type: FrameHello, Payload: payload}
	again := hello.Append(make([]byte, headerSize+MaxPayload))
	if err := out.Send(hello); err != nil {
		return err
	}
	for wait := helloAgain; ; wait *= 2 {
		timer := time.NewTimer(wait)
		select {
		case <-answered:
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if _, err := rw.Write(again); err != nil {
			return err
		}
	}
}

func dialError(ctx context.Context, rw io.Closer, err error) error {
	_ = rw.Close()
	if ctx.Err() != nil {
		return fmt.Errorf("agent: the guest's agent did not answer: %w", context.Cause(ctx))
	}
	return fmt.Errorf("agent: the guest's agent did not answer: %w", err)
}

// Done is closed when the connection is of no more use; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection is of no more use, or nil.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. Programs that were run through it are hung up.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	return nil
}

// fail makes everything end with err. The first call counts.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	execs, calls := c.execs, c.calls
	c.execs, c.calls = nil, nil
	close(c.done)
	c.mu.Unlock()
	_ = c.rw.Close()
	c.out.Stop(err)
	for _, e := range execs {
		e.end(Exit{}, err)
	}
	for _, ch := range calls {
		close(ch)
	}
}

// receive hands out what arrives. It never waits for anything else than the stream.
func (c *Client) receive(in *Reader) {
	for {
		f, err := in.Next()
		if err == nil {
			err = c.handle(f)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("agent: the guest is gone: %w", io.ErrUnexpectedEOF)
			}
			c.fail(err)
			return
		}
	}
}

func (c *Client) handle(f Frame) error {
	switch f.Type {
	case FrameHello:
		return nil // to a hello that was said twice
	case FrameReply:
		var r Reply
		if err := Decode(f.Payload, &r); err != nil {
			return err
		}
		c.mu.Lock()
		ch := c.calls[f.ID]
		delete(c.calls, f.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- r // has room for one
		}
		return nil
	case FrameStdout, FrameStderr, FrameCredit, FrameExit:
	default:
		return fmt.Errorf("%w: frame of type %d to the host", ErrProtocol, f.Type)
	}
	c.mu.Lock()
	e := c.execs[f.ID]
	if f.Type == FrameExit {
		delete(c.execs, f.ID)
	}
	c.mu.Unlock()
	if e == nil {
		return nil // Exec has given it up
	}
	return e.handle(f)
}

// id returns a number that is free. The caller holds mu.
func (c *Client) id() uint32 {
	for {
		c.next++
		if c.next != 0 && c.execs[c.next] == nil && c.calls[c.next] == nil {
			return c.next
		}
	}
}

// call has the guest do something and waits for its answer. Errors: those of the connection, ErrGuest, ctx.Err.
func (c *Client) call(ctx context.Context, method string, params, result any) error {
	call := Call{Method: method}
	if params != nil {
		p, err := Encode(params)
		if err != nil {
			return err
		}
		call.Params = p
	}
	payload, err := Encode(call)
	if err != nil {
		return err
	}
	ch := make(chan Reply, 1)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	id := c.id()
	c.calls[id] = ch
	c.mu.Unlock()
	// A guest that does not read must not hold up a caller whose time is over.
	sent := make(chan error, 1)
	go func() { sent <- c.out.Send(Frame{FrameCall, id, payload}) }()
	for {
		select {
		case err := <-sent:
			if err != nil {
				c.fail(err)
				return c.Err()
			}
			sent = nil
		case r, ok := <-ch:
			switch {
			case !ok:
				return c.Err()
			case r.Error != "":
				return fmt.Errorf("agent: %s: %w: %s", method, ErrGuest, Clean(r.Error))
			case result == nil:
				return nil
			}
			return Decode(r.Result, result)
		case <-ctx.Done():
			c.mu.Lock()
			delete(c.calls, id)
			c.mu.Unlock()
			return ctx.Err()
		}
	}
}

// SetNetwork sets up the guest's interfaces and names.
func (c *Client) SetNetwork(ctx context.Context, n Network) error {
	return c.call(ctx, MethodNetwork, n, nil)
}

// SetTime sets the guest's clock.
func (c *Client) SetTime(ctx context.Context, t time.Time) error {
	return c.call(ctx, MethodTime, Time{t.UnixNano()}, nil)
}

// Status asks how the guest is. The guest can say what it likes; text is printable and bounded.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, MethodStatus, nil, &s)
	s.Kernel, s.Hostname = Clean(s.Kernel), Clean(s.Hostname)
	if s.Main != nil {
		*s.Main = s.Main.checked()
	}
	return s, err
}

// Shutdown begins an orderly end of the guest. It returns when the guest has begun.
func (c *Client) Shutdown(ctx context.Context, s Shutdown) error {
	return c.call(ctx, MethodShutdown, s, nil)
}

// WaitMain waits until the main program has ended, and returns its exit code. Errors: those of the connection; ErrGuest if there is no
// main program or it could not be started.
func (c *Client) WaitMain(ctx context.Context) (int, error) {
	var e Exit
	if err := c.call(ctx, MethodWait, nil, &e); err != nil {
		return 0, err
	}
	return e.checked().result("main program")
}

// checked returns e with nothing in it that cannot be.
func (e Exit) checked() Exit {
	return Exit{Code: e.Code & 0xff, Signal: e.Signal & 0x7f, Error: Clean(e.Error)}
}

// result returns an exit as Exec does.
func (e Exit) result(what string) (int, error) {
	if e.Error != "" {
		return e.Code, fmt.Errorf("agent: %s: %w: %s", what, ErrGuest, e.Error)
	}
	return e.Code, nil
}
