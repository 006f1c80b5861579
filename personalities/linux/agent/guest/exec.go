package guest

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
)

const (
	// linger is for how long, once a program has ended, its output is awaited that its children still hold open.
	linger = 250 * time.Millisecond
	// maxLeft bounds what is still read then, in bytes: more than a pipe or a terminal holds.
	maxLeft = 2 << 20
	// maxEarly is how many signals are kept for a program that has not started.
	maxEarly = 16
	// endOfFile is what ends the input of a terminal.
	endOfFile = 4
)

// execution is a program that runs for the host.
type execution struct {
	s    *session
	id   uint32
	tty  bool
	in   *agent.Inbox // standard input
	out  *agent.Credit
	errs *agent.Credit

	child *Child           // nil until it has started; guarded by the session's mutex
	early []syscall.Signal // that came before; likewise

	mu       sync.Mutex
	terminal *os.File   // ours; nil without one, and when it is closed
	size     agent.Size // that the host wants it to have
}

// close ends everything that waits for the host.
func (e *execution) close() {
	e.in.Close()
	e.out.Close()
	e.errs.Close()
}

// start runs the program of a FrameExec to its end. The session has it in its table already. Errors: it did not start.
func (e *execution) start(x *agent.Exec) error {
	var s Streams
	var closeTheirs, closeOurs []*os.File
	leave := func() {
		for _, f := range closeTheirs {
			_ = f.Close()
		}
		closeTheirs = nil
	}
	defer leave()
	fail := func(err error) error {
		for _, f := range closeOurs {
			_ = f.Close()
		}
		return err
	}
	var stdin, stdout, stderr *os.File
	if x.TTY {
		ours, theirs, err := openTerminal()
		if err != nil {
			return err
		}
		closeTheirs, closeOurs = []*os.File{theirs}, []*os.File{ours}
		s = Streams{In: theirs, Out: theirs, Err: theirs, Terminal: true}
		stdin, stdout = ours, ours
		e.mu.Lock()
		e.terminal = ours
		err = resize(ours, e.size)
		e.mu.Unlock()
		if err != nil {
			return fail(err)
		}
	} else {
		var err error
		pipe := func() (r, w *os.File) {
			if err != nil {
				return nil, nil
			}
			if r, w, err = os.Pipe(); err == nil {
				return r, w
			}
			return nil, nil
		}
		if x.Stdin {
			s.In, stdin = pipe()
		} else {
			s.In, err = os.Open(os.DevNull)
		}
		stdout, s.Out = pipe()
		stderr, s.Err = pipe()
		for _, f := range []*os.File{s.In, s.Out, s.Err} {
			if f != nil {
				closeTheirs = append(closeTheirs, f)
			}
		}
		for _, f := range []*os.File{stdin, stdout, stderr} {
			if f != nil {
				closeOurs = append(closeOurs, f)
			}
		}
		if err != nil {
			return fail(err)
		}
	}
	child, err := Launch(e.s.server.Reaper, &x.Process, e.s.server.Env, s)
	if err != nil {
		return fail(err)
	}
	leave() // or the output would never end
	e.s.setChild(e, child)
	e.run(child, stdin, stdout, stderr)
	return nil
}

// run carries the program's streams, and reports its end when its output is out.
func (e *execution) run(child *Child, stdin, stdout, stderr *os.File) {
	var outputs, inputs sync.WaitGroup
	outputs.Go(func() { e.send(agent.FrameStdout, stdout, e.out) })
	if stderr != nil {
		outputs.Go(func() { e.send(agent.FrameStderr, stderr, e.errs) })
	}
	if stdin != nil {
		inputs.Go(func() { e.feed(stdin) })
	} else {
		e.in.Close()
	}
	<-child.Done()
	deadline := time.Now().Add(linger)
	_ = stdout.SetReadDeadline(deadline)
	if stderr != nil {
		_ = stderr.SetReadDeadline(deadline)
	}
	outputs.Wait()
	e.close()
	if stdin != nil {
		_ = stdin.SetWriteDeadline(time.Now())
		inputs.Wait()
	}
	e.mu.Lock()
	e.terminal = nil
	e.mu.Unlock()
	for _, f := range []*os.File{stdin, stdout, stderr} {
		if f != nil {
			_ = f.Close() // a terminal's twice
		}
	}
	e.s.finish(e, ExitOf(child.Status()))
}

// send carries output to the host, as far as the window allows.
func (e *execution) send(stream agent.FrameType, f *os.File, window *agent.Credit) {
	buf := make([]byte, agent.MaxData)
	late := 0 // bytes read after the deadline
	for {
		want := len(buf)
		if late > 0 {
			if want = min(want, pending(f)); want == 0 || late > maxLeft {
				return
			}
		}
		n, ok := window.Take(want)
		if !ok {
			// Nobody wants it any more. The program must not wait for us.
			_ = f.Close()
			return
		}
		got, err := f.Read(buf[:n])
		if got < n {
			_ = window.Add(uint32(n - got)) // what was taken before
		}
		if got > 0 && e.s.out.Send(agent.Frame{Type: stream, ID: e.id, Payload: buf[:got]}) != nil {
			_ = f.Close()
			return
		}
		if late > 0 {
			late += got
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && late == 0:
			late = 1
			_ = f.SetReadDeadline(time.Time{})
		case err != nil:
			return // the end; of a terminal, EIO
		}
	}
}

// feed writes what the host sends to the program, and renews the window.
func (e *execution) feed(f *os.File) {
	broken := false
	for {
		b, ok := e.in.Pop()
		if !ok {
			break
		}
		if !broken {
			_, err := f.Write(b)
			broken = err != nil // it reads no more; the rest is dropped
		}
		if e.s.out.Send(agent.CreditFrame(e.id, agent.FrameStdin, len(b))) != nil {
			break
		}
	}
	if e.tty {
		_, _ = f.Write([]byte{endOfFile})
	} else {
		_ = f.Close()
	}
}

// resize changes the size of the program's terminal.
func (e *execution) resize(size agent.Size) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.size = size
	if e.terminal != nil {
		_ = resize(e.terminal, size) // a terminal that is gone has no size
	}
}

// hangUp ends a program that its host has left.
func (e *execution) hangUp() {
	e.close()
	if e.child == nil {
		return
	}
	_ = e.child.Signal(unix.SIGHUP)
	time.AfterFunc(2*time.Second, func() { _ = e.child.Signal(unix.SIGKILL) }) // nothing if it has ended
}

// signal sends the program a signal of the host's.
func (e *execution) signal(p []byte) error {
	if len(p) != 1 || p[0] == 0 || p[0] > 64 {
		return fmt.Errorf("%w: signal % x", agent.ErrProtocol, p[:min(len(p), 4)])
	}
	switch n := syscall.Signal(p[0]); {
	case e.child != nil:
		_ = e.child.Signal(n) // it may have ended meanwhile
	case len(e.early) < maxEarly:
		e.early = append(e.early, n)
	}
	return nil
}
