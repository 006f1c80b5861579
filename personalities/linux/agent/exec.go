package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
)

// ExecOptions say what to run, and with what.
type ExecOptions struct {
	Process
	// Stdin is what the program reads. Nil: nothing. When Exec returns, one Read of it may still be under way.
	Stdin io.Reader
	// Stdout and Stderr take what the program writes; nil drops it. A slow writer stops the program, and nobody else.
	Stdout, Stderr io.Writer
	// TTY gives the program a terminal of the given Size. Its output is all on Stdout then.
	TTY  bool
	Size Size
	// Resize changes the terminal's size. The channel may stay open, and may be closed.
	Resize <-chan Size
	// Signals are sent to the program and its children. The channel may stay open, and may be closed.
	Signals <-chan syscall.Signal
}

// execution is the host's side of a program.
type execution struct {
	out, err *Inbox
	stdin    *Credit
	once     sync.Once
	exit     Exit
	failure  error
	done     chan struct{} // closed behind exit and failure
}

// end says how the program ended, or why that will never be known. The first call counts.
func (e *execution) end(x Exit, failure error) {
	e.once.Do(func() {
		e.exit, e.failure = x, failure
		e.stdin.Close()
		e.out.Close()
		e.err.Close()
		close(e.done)
	})
}

func (e *execution) handle(f Frame) error {
	switch f.Type {
	case FrameStdout:
		return e.out.Push(f.Payload)
	case FrameStderr:
		return e.err.Push(f.Payload)
	case FrameExit:
		var x Exit
		err := Decode(f.Payload, &x)
		e.end(x.checked(), err) // also then: the Client knows it no more
		return err
	}
	stream, n, err := ParseCredit(f.Payload)
	if err != nil {
		return err
	}
	if stream != FrameStdin {
		return fmt.Errorf("%w: credit for stream %d", ErrProtocol, stream)
	}
	return e.stdin.Add(n)
}

// Exec runs a program in the guest and returns its exit code when it has ended and its output is written: 128+n after signal n. When
// ctx ends first, the program is killed and ctx.Err returned at once, while a last Write may still be under way. Errors: ErrGuest if it could not be started (the code is then 127 if it was not
// found, else 126); those of the connection; those of Stdout and Stderr, after which the program has got a SIGPIPE.
func (c *Client) Exec(ctx context.Context, o ExecOptions) (code int, err error) {
	payload, err := Encode(Exec{Process: o.Process, TTY: o.TTY, Size: o.Size, Stdin: o.Stdin != nil})
	if err != nil {
		return 0, err
	}
	if len(o.Argv) == 0 {
		return 0, errors.New("agent: no program to run")
	}
	e := &execution{out: NewInbox(), err: NewInbox(), stdin: NewCredit(), done: make(chan struct{})}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return 0, c.err
	}
	id := c.id()
	c.execs[id] = e
	c.mu.Unlock()
	abandon := func() {
		c.mu.Lock()
		delete(c.execs, id)
		c.mu.Unlock()
		e.end(Exit{}, ErrClosed)
	}
	// The guest may not read for now; that must not keep the caller.
	commands := make(chan Frame, 16)
	defer close(commands)
	go func() {
		for f := range commands {
			if err := c.out.Send(f); err != nil {
				c.fail(err)
			} else if f.Type == FrameExec && o.Stdin != nil {
				go c.sendStdin(id, e, o.Stdin) // not before, or it would be nobody's
			}
		}
	}()
	commands <- Frame{FrameExec, id, payload}
	written := make(chan error, 2)
	go func() { written <- c.writeOut(id, FrameStdout, e.out, o.Stdout) }()
	go func() { written <- c.writeOut(id, FrameStderr, e.err, o.Stderr) }()
	command := func(f Frame) {
		select {
		case commands <- f:
		case <-e.done:
		case <-ctx.Done():
		}
	}
	var failed []error
	for writers := 2; writers > 0; {
		select {
		case <-ctx.Done():
			abandon()
			select {
			case commands <- Frame{FrameSignal, id, []byte{byte(syscall.SIGKILL)}}:
			default: // the guest has not read for long
			}
			return 0, ctx.Err()
		case err := <-written:
			writers--
			failed = append(failed, err)
		case size, ok := <-o.Resize:
			if !ok {
				o.Resize = nil
				continue
			}
			if p, err := Encode(size); err == nil {
				command(Frame{FrameResize, id, p})
			}
		case s, ok := <-o.Signals:
			if !ok {
				o.Signals = nil
				continue
			}
			command(Frame{FrameSignal, id, []byte{byte(s)}})
		}
	}
	<-e.done // the writers end behind it
	if e.failure != nil {
		return 0, e.failure
	}
	code, err = e.exit.result(Clean(o.Argv[0]))
	return code, errors.Join(append(failed, err)...)
}

// sendStdin sends what r has, as far as the window allows.
func (c *Client) sendStdin(id uint32, e *execution, r io.Reader) {
	buf := make([]byte, MaxData)
	for {
		n, readErr := r.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			k, ok := e.stdin.Take(len(rest))
			if !ok || c.out.Send(Frame{FrameStdin, id, rest[:k]}) != nil {
				return
			}
			rest = rest[k:]
		}
		if readErr != nil {
			select {
			case <-e.done:
			default:
				_ = c.out.Send(Frame{FrameStdin, id, nil})
			}
			return
		}
	}
}

// writeOut writes what arrives, and renews the window. A writer that fails is told so once; the rest is dropped.
func (c *Client) writeOut(id uint32, stream FrameType, in *Inbox, w io.Writer) (failed error) {
	for {
		b, ok := in.Pop()
		if !ok {
			return failed
		}
		if w != nil && failed == nil {
			if _, err := w.Write(b); err != nil {
				failed = err
				_ = c.out.Send(Frame{FrameSignal, id, []byte{byte(syscall.SIGPIPE)}})
			}
		}
		if c.out.Send(CreditFrame(id, stream, len(b))) != nil {
			return failed // the connection's end closes the Inbox
		}
	}
}
