package guest

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/grailos/grail/personalities/linux/agent"
)

// Bounds of a session.
const (
	maxExecs = 256
	maxCalls = 64
)

// ErrReset is what a port's Read returns when the host has left it. The next host's bytes follow.
var ErrReset = errors.New("guest: the host has left the port")

// Server answers a host.
type Server struct {
	Reaper *Reaper
	// Hello is what the host is answered, beside its nonce.
	Hello agent.Hello
	// Env is added to the environment of every program.
	Env []string
	// Call does what a host asks for, each on a goroutine of its own. It must stop when stop is closed: the host has gone.
	Call func(c agent.Call, stop <-chan struct{}) (result any, err error)

	// Panicked is told of a panic, which ends what it happened in and nothing else. Nil: it ends this process.
	Panicked func(v any)

	mu   sync.Mutex
	busy int // programs and calls
	runs int // programs
	idle chan struct{}
}

// spawn runs f on a goroutine of its own.
func (s *Server) spawn(f func()) {
	go func() {
		defer func() {
			if s.Panicked != nil {
				if v := recover(); v != nil {
					s.Panicked(v)
				}
			}
		}()
		f()
	}()
}

// Execs returns how many programs run for the host.
func (s *Server) Execs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs
}

// Serve answers hosts on port, one after the other, until its Read fails with another error than ErrReset.
func (s *Server) Serve(port io.ReadWriter) error {
	in := agent.NewReader(port)
	out := agent.NewWriter(port)
	var current *session
	defer func() { current.end() }()
	for {
		f, err := in.Hello()
		for err == nil {
			if f.Type != agent.FrameHello {
				err = current.handle(f)
			} else if current, err = s.hello(current, out, f); current == nil {
				break
			}
			if err == nil {
				f, err = in.Next()
			}
		}
		switch {
		case err == nil: // a hello that is none
		case errors.Is(err, ErrReset):
			in.Discard()
		case errors.Is(err, agent.ErrProtocol): // look for the next hello
		default:
			return err
		}
		current.end()
		current = nil
	}
}

// hello begins a session, unless it is the current one's again.
func (s *Server) hello(current *session, out *agent.Writer, f agent.Frame) (*session, error) {
	var h agent.Hello
	if err := agent.Decode(f.Payload, &h); err != nil {
		return current, err
	}
	if current != nil && current.nonce == h.Nonce {
		return current, nil
	}
	current.end()
	n := &session{server: s, nonce: h.Nonce, out: out.Fork(), execs: make(map[uint32]*execution), stop: make(chan struct{})}
	answer := s.Hello
	answer.Nonce, answer.Version = h.Nonce, agent.Version
	payload, err := agent.Encode(answer)
	if err != nil {
		return n, err
	}
	// The one who reads never waits for the host to do so. This is the first that is sent, as nothing else is asked for yet.
	s.spawn(func() { _ = n.out.Send(agent.Frame{Type: agent.FrameHello, Payload: payload}) })
	return n, nil
}

// session is a host's connection.
type session struct {
	server *Server
	nonce  string
	out    *agent.Writer
	stop   chan struct{}

	mu    sync.Mutex
	execs map[uint32]*execution
	calls int
	over  bool
}

// end hangs up every program of the session. Nothing of it reaches the port from then on, except for a frame that is half-way out.
func (s *session) end() {
	if s == nil {
		return
	}
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over = true
	close(s.stop)
	s.out.Stop(ErrReset)
	for _, e := range s.execs {
		e.hangUp()
	}
	s.execs = nil
	s.mu.Unlock()
}

// handle does what a frame says. Errors end the session.
func (s *session) handle(f agent.Frame) error {
	switch f.Type {
	case agent.FrameExec:
		return s.exec(f)
	case agent.FrameCall:
		return s.call(f)
	case agent.FrameStdin, agent.FrameCredit, agent.FrameResize, agent.FrameSignal:
	default:
		return fmt.Errorf("%w: frame of type %d to the guest", agent.ErrProtocol, f.Type)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.execs[f.ID]
	if e == nil {
		return nil // it has just ended
	}
	switch f.Type {
	case agent.FrameStdin:
		if len(f.Payload) == 0 {
			e.in.Close()
			return nil
		}
		return e.in.Push(f.Payload)
	case agent.FrameCredit:
		stream, n, err := agent.ParseCredit(f.Payload)
		if err != nil {
			return err
		}
		switch stream {
		case agent.FrameStdout:
			return e.out.Add(n)
		case agent.FrameStderr:
			return e.errs.Add(n)
		}
		return fmt.Errorf("%w: credit for stream %d", agent.ErrProtocol, stream)
	case agent.FrameResize:
		var size agent.Size
		if err := agent.Decode(f.Payload, &size); err != nil {
			return err
		}
		e.resize(size)
		return nil
	}
	return e.signal(f.Payload)
}

// exec starts a program.
func (s *session) exec(f agent.Frame) error {
	var x agent.Exec
	if err := agent.Decode(f.Payload, &x); err != nil {
		return err
	}
	e := &execution{s: s, id: f.ID, tty: x.TTY, size: x.Size, in: agent.NewInbox(), out: agent.NewCredit(), errs: agent.NewCredit()}
	s.mu.Lock()
	if s.execs[f.ID] != nil || len(s.execs) >= maxExecs {
		s.mu.Unlock()
		return fmt.Errorf("%w: program %d is one too many", agent.ErrProtocol, f.ID)
	}
	s.execs[f.ID] = e
	s.mu.Unlock()
	s.server.count(1, 0)
	// Looking for a program may have to wait for a disk.
	s.server.spawn(func() {
		if err := e.start(&x); err != nil {
			s.finish(e, NotStarted(err))
		}
	})
	return nil
}

// setChild makes a program that has started known.
func (s *session) setChild(e *execution, c *Child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.child = c
	for _, n := range e.early {
		_ = c.Signal(n)
	}
	if s.over {
		e.hangUp()
	}
}

// finish reports a program's end, the last that the host hears of it.
func (s *session) finish(e *execution, x agent.Exit) {
	e.close()
	defer s.server.count(-1, 0)
	s.mu.Lock()
	if s.execs[e.id] == e {
		delete(s.execs, e.id)
	}
	over := s.over
	s.mu.Unlock()
	if over {
		return
	}
	x.Error = agent.Clean(x.Error)
	if p, err := agent.Encode(x); err == nil {
		_ = s.out.Send(agent.Frame{Type: agent.FrameExit, ID: e.id, Payload: p})
	}
}

// count notes that programs and calls have begun or ended.
func (s *Server) count(runs, calls int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs += runs
	s.busy += runs + calls
	if s.busy == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// Drain waits until every program's end is reported and every call is answered, or the time is over.
func (s *Server) Drain(limit time.Duration) {
	s.mu.Lock()
	if s.busy == 0 {
		s.mu.Unlock()
		return
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(limit):
	}
}

// call answers a call when it is done.
func (s *session) call(f agent.Frame) error {
	var c agent.Call
	if err := agent.Decode(f.Payload, &c); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls >= maxCalls {
		return fmt.Errorf("%w: more than %d calls at a time", agent.ErrProtocol, maxCalls)
	}
	s.calls++
	s.server.count(0, 1)
	id := f.ID
	s.server.spawn(func() {
		defer s.server.count(0, -1)
		var r agent.Reply
		result, err := s.server.Call(c, s.stop)
		if err == nil && result != nil {
			r.Result, err = agent.Encode(result)
		}
		if err != nil {
			r = agent.Reply{Error: agent.Clean(err.Error())}
		}
		p, err := agent.Encode(r)
		if err == nil {
			_ = s.out.Send(agent.Frame{Type: agent.FrameReply, ID: id, Payload: p})
		}
		s.mu.Lock()
		s.calls--
		s.mu.Unlock()
	})
	return nil
}
