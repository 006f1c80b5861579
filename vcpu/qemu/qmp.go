package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

// Bounds of the conversation with QEMU.
const (
	maxMessage     = 16 << 20         // bytes of one reply or event
	maxText        = 1 << 10          // bytes of a name or an error's description
	maxPending     = 64               // commands without an answer
	eventBacklog   = 256              // events that nobody has read yet; the oldest goes
	commandTimeout = 10 * time.Second // of a command whose context has no deadline
)

// Errors of a conversation.
var (
	// ErrClosed reports that QEMU has ended, or that its monitor was closed.
	ErrClosed = errors.New("qemu: the monitor is closed")
	// ErrProtocol reports that QEMU does not speak QMP: it is broken or hostile, and the conversation is over.
	ErrProtocol = errors.New("qemu: broken monitor protocol")
)

// CommandError is QEMU's refusal of a command.
type CommandError struct {
	Command string
	Class   string // such as "GenericError", "DeviceNotFound"
	Desc    string // for people
}

func (e *CommandError) Error() string { return fmt.Sprintf("qemu: %s: %s", e.Command, e.Desc) }

// message is all that QEMU can say.
type message struct {
	QMP       json.RawMessage `json:"QMP"`
	Return    json.RawMessage `json:"return"`
	Error     *wireError      `json:"error"`
	ID        json.RawMessage `json:"id"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

type wireError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// decoder reads messages, each of at most max bytes.
type decoder struct {
	in  *budget
	dec *json.Decoder
}

// budget is a reader that fails after n bytes.
type budget struct {
	r io.Reader
	n int
}

func (b *budget) Read(p []byte) (int, error) {
	if b.n <= 0 {
		return 0, fmt.Errorf("%w: a message of more than %d bytes", ErrProtocol, maxMessage)
	}
	n, err := b.r.Read(p[:min(len(p), b.n)])
	b.n -= n
	return n, err
}

func newDecoder(r io.Reader) *decoder {
	in := &budget{r: r}
	return &decoder{in: in, dec: json.NewDecoder(in)}
}

// next returns the next message. Errors: ErrProtocol, or the reader's.
func (d *decoder) next() (message, error) {
	var m message
	d.in.n = maxMessage
	if err := d.dec.Decode(&m); err != nil {
		var syntax *json.SyntaxError
		var typ *json.UnmarshalTypeError
		if errors.As(err, &syntax) || errors.As(err, &typ) {
			err = fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		return message{}, err
	}
	if len(m.Event) > maxText {
		return message{}, fmt.Errorf("%w: an event's name of %d bytes", ErrProtocol, len(m.Event))
	}
	if m.Error != nil {
		m.Error.Class, m.Error.Desc = cut(m.Error.Class), cut(m.Error.Desc)
	}
	return m, nil
}

func cut(s string) string { return s[:min(len(s), maxText)] }

// client is one conversation. It is safe for concurrent use.
type client struct {
	conn net.Conn
	log  *Log
	// onEvent is called for each event, in order, by the reading goroutine; it must not wait for a command.
	onEvent func(message)

	write sync.Mutex // held while a command is written

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan message
	err     error         // why the conversation is over
	closed  chan struct{} // closed with err set
	streams map[chan qmp.Event]struct{}
}

func newClient(conn net.Conn, log *Log, onEvent func(message)) *client {
	return &client{conn: conn, log: log, onEvent: onEvent, pending: map[uint64]chan message{},
		closed: make(chan struct{}), streams: map[chan qmp.Event]struct{}{}}
}

// greet begins the conversation; nothing else may be called before. ctx bounds it. Errors: ErrProtocol, ErrClosed, those
// of ctx; then the conversation is over.
func (c *client) greet(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	dec := newDecoder(c.conn)
	m, err := dec.next()
	if err == nil && m.QMP == nil {
		err = fmt.Errorf("%w: no greeting", ErrProtocol)
	}
	if !stop() && err == nil {
		err = os.ErrDeadlineExceeded
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		c.close(fmt.Errorf("%w: %w", ErrClosed, err))
		return fmt.Errorf("qemu: wait for the monitor's greeting: %w", err)
	}
	c.log.add(fromQEMU, m.QMP)
	go c.read(dec)
	if err := c.run(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.close(ErrClosed)
		return err
	}
	return nil
}

// read takes messages until the end.
func (c *client) read(dec *decoder) {
	for {
		m, err := dec.next()
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				err = fmt.Errorf("%w: %w", ErrClosed, err)
			}
			c.close(err)
			return
		}
		switch {
		case m.Event != "":
			c.log.add(fromQEMU, fmt.Appendf(nil, "event %s %s", m.Event, m.Data))
			c.onEvent(m)
			c.publish(m)
		case m.Return != nil || m.Error != nil:
			if m.Error != nil {
				c.log.add(fromQEMU, fmt.Appendf(nil, "%s error %s: %s", m.ID, m.Error.Class, m.Error.Desc))
			} else {
				c.log.add(fromQEMU, fmt.Appendf(nil, "%s return %s", m.ID, m.Return))
			}
			id, err := strconv.ParseUint(string(m.ID), 10, 64)
			if err != nil {
				continue // an answer to nobody
			}
			c.mu.Lock()
			answer := c.pending[id]
			delete(c.pending, id)
			c.mu.Unlock()
			if answer != nil {
				answer <- m // has room for the one answer
			}
		}
	}
}

// close ends the conversation for the reason err; only the first counts.
func (c *client) close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.closed)
	c.conn.Close()
	for s := range c.streams {
		delete(c.streams, s)
		close(s)
	}
}

// request is a command on the wire.
type request struct {
	Execute string          `json:"execute"`
	Args    any             `json:"arguments,omitempty"`
	ID      json.RawMessage `json:"id"`
}

// exchange sends a command and returns the answer. A context without a deadline gets commandTimeout. Errors: ErrClosed,
// ErrProtocol, those of ctx; then the command may or may not be carried out.
func (c *client) exchange(ctx context.Context, command string, args any) (message, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, commandTimeout)
		defer cancel()
	}
	answer := make(chan message, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return message{}, fmt.Errorf("qemu: %s: %w", command, c.err)
	}
	if len(c.pending) >= maxPending {
		defer c.mu.Unlock()
		return message{}, fmt.Errorf("qemu: %s: %d commands wait for QEMU's answer", command, maxPending)
	}
	c.next++
	id := c.next
	c.pending[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
	}()

	line, err := json.Marshal(request{Execute: command, Args: args, ID: strconv.AppendUint(nil, id, 10)})
	if err != nil {
		return message{}, fmt.Errorf("qemu: %s: %w", command, err)
	}
	c.log.add(toQEMU, line)
	c.write.Lock()
	deadline, _ := ctx.Deadline()
	err = c.conn.SetWriteDeadline(deadline)
	if err == nil {
		_, err = c.conn.Write(append(line, '\n'))
	}
	c.write.Unlock()
	if err != nil {
		// Half a command may have gone: nothing can follow it.
		err = fmt.Errorf("%w: %w", ErrClosed, err)
		c.close(err)
		return message{}, fmt.Errorf("qemu: %s: %w", command, err)
	}
	select {
	case m := <-answer:
		return m, nil
	case <-c.closed:
		select {
		case m := <-answer:
			return m, nil
		default:
			return message{}, fmt.Errorf("qemu: %s: %w", command, c.err)
		}
	case <-ctx.Done():
		return message{}, fmt.Errorf("qemu: %s: no answer: %w", command, context.Cause(ctx))
	}
}

// run sends a command and decodes the answer into reply, unless that is nil. Errors: *CommandError, and those of
// exchange.
func (c *client) run(ctx context.Context, command string, args, reply any) error {
	m, err := c.exchange(ctx, command, args)
	if err != nil {
		return err
	}
	if m.Error != nil {
		return &CommandError{command, m.Error.Class, m.Error.Desc}
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, reply); err != nil {
		return fmt.Errorf("qemu: %s: %w: %w", command, ErrProtocol, err)
	}
	return nil
}

// publish gives an event to the streams; a stream that is full loses its oldest.
func (c *client) publish(m message) {
	e := qmp.Event{Event: m.Event}
	e.Timestamp.Seconds, e.Timestamp.Microseconds = m.Timestamp.Seconds, m.Timestamp.Microseconds
	if len(m.Data) > 0 {
		// Data that is no object is none; Decode has checked its syntax.
		_ = json.Unmarshal(m.Data, &e.Data)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.streams {
		for {
			select {
			case s <- e:
			default:
				select {
				case <-s:
				default:
				}
				continue
			}
			break
		}
	}
}

// events returns a stream of the events from now on. It is closed when ctx ends or the conversation does.
func (c *client) events(ctx context.Context) <-chan qmp.Event {
	s := make(chan qmp.Event, eventBacklog)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		close(s)
		return s
	}
	c.streams[s] = struct{}{}
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if _, ok := c.streams[s]; ok {
			delete(c.streams, s)
			close(s)
		}
	})
	return s
}

// monitor is a client as go-qemu wants it: for qemu.NewDomain.
type monitor struct{ c *client }

var _ qmp.Monitor = monitor{}

func (monitor) Connect() error { return nil }

// Disconnect does nothing: the conversation is the VM's.
func (monitor) Disconnect() error { return nil }

// Run sends a command, which is JSON with "execute" and "arguments", and returns QEMU's whole answer. The answer is
// the caller's.
func (m monitor) Run(command []byte) ([]byte, error) {
	var q struct {
		Execute string          `json:"execute"`
		Args    json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(command, &q); err != nil {
		return nil, fmt.Errorf("qemu: command: %w", err)
	}
	var args any
	if q.Args != nil {
		args = q.Args
	}
	a, err := m.c.exchange(context.Background(), q.Execute, args)
	if err != nil {
		return nil, err
	}
	if a.Error != nil {
		return nil, &CommandError{q.Execute, a.Error.Class, a.Error.Desc}
	}
	return json.Marshal(map[string]json.RawMessage{"return": a.Return})
}

func (m monitor) Events(ctx context.Context) (<-chan qmp.Event, error) { return m.c.events(ctx), nil }
