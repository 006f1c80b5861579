package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/grailos/grail/personalities/linux/agent"
)

var testReaper = sync.OnceValue(func() *Reaper { return NewReaper(false) })

func newServer() *Server {
	return &Server{Reaper: testReaper(), Env: []string{"FROM=config"}, Hello: agent.Hello{Agent: "test"},
		Call: func(c agent.Call, stop <-chan struct{}) (any, error) {
			switch c.Method {
			case agent.MethodStatus:
				return agent.Status{Kernel: "6.1\x1b[2J", Processes: 3}, nil
			case agent.MethodWait:
				<-stop
				return nil, errors.New("stopped")
			}
			return nil, fmt.Errorf("no method %s\x1b", c.Method)
		}}
}

// connect returns a client of a server in this process. The pipe between them holds nothing, so that any side which waits with
// reading until it could write is found.
func connect(t *testing.T) *agent.Client {
	t.Helper()
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- newServer().Serve(theirs) }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := agent.Dial(ctx, ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		if err := <-served; err != io.EOF && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("serve: %v", err)
		}
	})
	return c
}

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func sh(script string) agent.ExecOptions {
	return agent.ExecOptions{Process: agent.Process{Argv: []string{"sh", "-c", script}}}
}

func TestExec(t *testing.T) {
	c := connect(t)
	for _, x := range []struct {
		name     string
		o        agent.ExecOptions
		in       string
		code     int
		out, err string
		fails    bool
	}{
		{name: "code", o: sh("exit 42"), code: 42},
		{name: "streams", o: sh("echo out; echo err >&2"), out: "out\n", err: "err\n"},
		{name: "input", o: sh("cat; echo done"), in: "some\ninput", out: "some\ninputdone\n"},
		{name: "signal", o: sh("kill -9 $$"), code: 137},
		{name: "no input", o: sh("read x || echo none"), out: "none\n"},
		{name: "environment", o: agent.ExecOptions{Process: agent.Process{Argv: []string{"sh", "-c", "echo $A $FROM $HOME; pwd"},
			Env: []string{"A=1", "A=2"}, Dir: "/usr"}}, out: "2 config /root\n/usr\n"},
		{name: "not found", o: agent.ExecOptions{Process: agent.Process{Argv: []string{"no-such-program"}}}, code: 127, fails: true},
		{name: "not found by path", o: agent.ExecOptions{Process: agent.Process{Argv: []string{"/no/such/program"}}}, code: 127, fails: true},
		{name: "no program", o: agent.ExecOptions{Process: agent.Process{Argv: []string{"/etc/passwd"}}}, code: 126, fails: true},
		{name: "no user", o: agent.ExecOptions{Process: agent.Process{Argv: []string{"true"}, User: "nobody-at-all"}}, code: 126, fails: true},
		{name: "left open", o: sh("echo first; sleep 30 & exit 5"), out: "first\n", code: 5},
		{name: "unread input", o: sh("exec <&-; echo x"), in: strings.Repeat("y", 1<<20), out: "x\n"},
	} {
		var out, errs bytes.Buffer
		x.o.Stdout, x.o.Stderr = &out, &errs
		if x.in != "" {
			x.o.Stdin = strings.NewReader(x.in)
		}
		code, err := c.Exec(limit(t), x.o)
		if code != x.code || errors.Is(err, agent.ErrGuest) != x.fails || err != nil && !x.fails || out.String() != x.out || errs.String() != x.err {
			t.Errorf("%s: code %d, %v, %q, %q; expected %d, %q, %q", x.name, code, err, out.String(), errs.String(), x.code, x.out, x.err)
		}
	}
}

func TestExecLarge(t *testing.T) {
	c := connect(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	h := sha256.New()
	o := sh("cat")
	o.Stdin, o.Stdout = bytes.NewReader(data), h
	code, err := c.Exec(limit(t), o)
	if want := sha256.Sum256(data); err != nil || code != 0 || !bytes.Equal(h.Sum(nil), want[:]) {
		t.Errorf("%d, %v, or other bytes", code, err)
	}
}

// blocked is a writer that waits.
type blocked struct{ free chan struct{} }

func (b blocked) Write(p []byte) (int, error) { <-b.free; return len(p), nil }

// One whose output nobody takes does not hold up others, and loses nothing.
func TestSlowReader(t *testing.T) {
	c := connect(t)
	free := make(chan struct{})
	slow := make(chan error, 1)
	var n counter
	go func() {
		o := sh("head -c 2000000 /dev/zero")
		o.Stdout = io.MultiWriter(blocked{free}, &n)
		_, err := c.Exec(limit(t), o)
		slow <- err
	}()
	for range 20 {
		var out bytes.Buffer
		o := sh("echo quick")
		o.Stdout = &out
		if code, err := c.Exec(limit(t), o); code != 0 || err != nil || out.String() != "quick\n" {
			t.Fatalf("%d, %v, %q", code, err, out.String())
		}
	}
	close(free)
	if err := <-slow; err != nil || n != 2000000 {
		t.Errorf("%v, %d bytes", err, n)
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

func TestExecMany(t *testing.T) {
	c := connect(t)
	var group sync.WaitGroup
	for n := range 40 {
		group.Go(func() {
			var out bytes.Buffer
			o := sh(fmt.Sprintf("cat; exit %d", n))
			o.Stdin, o.Stdout = strings.NewReader(fmt.Sprint("text", n)), &out
			if code, err := c.Exec(limit(t), o); code != n || err != nil || out.String() != fmt.Sprint("text", n) {
				t.Errorf("%d: %d, %v, %q", n, code, err, out.String())
			}
		})
	}
	group.Wait()
}

// notify tells when it was written to, and keeps everything.
type notify struct {
	mu   sync.Mutex
	text bytes.Buffer
	ch   chan struct{}
}

func newNotify() *notify { return &notify{ch: make(chan struct{}, 1)} }

func (n *notify) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.text.Write(p)
	select {
	case n.ch <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (n *notify) wait(t *testing.T, want string) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		n.mu.Lock()
		have := n.text.String()
		n.mu.Unlock()
		if strings.Contains(have, want) {
			return
		}
		select {
		case <-n.ch:
		case <-late:
			t.Fatalf("%q, expected %q in it", have, want)
		}
	}
}

func TestTerminal(t *testing.T) {
	c := connect(t)
	out := newNotify()
	in, typed := io.Pipe()
	sizes := make(chan agent.Size)
	o := sh("stty size; tty >/dev/null && echo terminal; until [ \"$(stty size)\" = '50 132' ]; do sleep 0.02; done; echo resized; read x; echo got $x; exit 9")
	o.TTY, o.Size, o.Resize = true, agent.Size{Rows: 24, Columns: 80}, sizes
	o.Stdin, o.Stdout = in, out
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() { code, err := c.Exec(limit(t), o); done <- result{code, err} }()
	out.wait(t, "24 80\r\nterminal")
	sizes <- agent.Size{Rows: 50, Columns: 132}
	out.wait(t, "resized")
	if _, err := typed.Write([]byte("word\n")); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.code != 9 || r.err != nil {
		t.Errorf("%+v", r)
	}
	out.wait(t, "got word")
	// Control-C interrupts, and the end of the input is the end.
	out = newNotify()
	o = sh("cat")
	o.TTY, o.Stdin, o.Stdout = true, strings.NewReader("line\n"), out
	if code, err := c.Exec(limit(t), o); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	o = sh("sleep 30")
	o.TTY, o.Stdin = true, strings.NewReader("\x03")
	if code, err := c.Exec(limit(t), o); code != 130 || err != nil {
		t.Errorf("interrupted: %d, %v", code, err)
	}
}

func TestSignals(t *testing.T) {
	c := connect(t)
	out := newNotify()
	signals := make(chan syscall.Signal, 1)
	o := sh("trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.05; done")
	o.Stdout, o.Signals = out, signals
	go func() {
		out.wait(t, "ready")
		signals <- syscall.SIGUSR1
	}()
	if code, err := c.Exec(limit(t), o); code == 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	// A canceled one is killed at once, even before it has started.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Exec(ctx, sh("sleep 30")); err != context.Canceled {
		t.Errorf("canceled: %v", err)
	}
	// A writer that fails ends the program.
	r, w := io.Pipe()
	_ = r.Close()
	o = sh("yes")
	o.Stdout = w
	if code, err := c.Exec(limit(t), o); code != 128+int(syscall.SIGPIPE) || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("broken writer: %d, %v", code, err)
	}
}

func TestCalls(t *testing.T) {
	c := connect(t)
	s, err := c.Status(limit(t))
	if err != nil || s.Processes != 3 || s.Kernel != "6.1?[2J" {
		t.Errorf("%+v, %v", s, err)
	}
	if err := c.SetTime(limit(t), time.Now()); !errors.Is(err, agent.ErrGuest) || !strings.HasSuffix(err.Error(), "no method time?") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.WaitMain(ctx); err != context.DeadlineExceeded {
		t.Error(err)
	}
	waiting := make(chan error, 1)
	go func() { _, err := c.WaitMain(context.Background()); waiting <- err }()
	_ = c.Close()
	if err := <-waiting; err != agent.ErrClosed {
		t.Error(err)
	}
	if _, err := c.Exec(limit(t), sh("true")); err != agent.ErrClosed {
		t.Error(err)
	}
}

// link is the host's end of a port that outlives hosts: what one of them has half written stands before what the next one writes.
type link struct {
	io.Reader
	io.Writer
}

func (link) Close() error { return nil }

// A host that dies in the middle of a frame leaves nothing to the next, and its programs end.
func TestNextHost(t *testing.T) {
	toGuest, fromHost := net.Pipe()
	defer fromHost.Close()
	go func() { _ = newServer().Serve(toGuest) }()
	first, err := agent.Dial(limit(t), link{fromHost, fromHost})
	if err != nil {
		t.Fatal(err)
	}
	out := newNotify()
	o := sh("trap 'rm -f $F; exit' HUP; echo ready; while :; do sleep 0.05; done")
	mark := t.TempDir() + "/mark"
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Env, o.Stdout = []string{"F=" + mark}, out
	go func() { _, _ = first.Exec(limit(t), o) }()
	out.wait(t, "ready")
	cut := agent.Frame{Type: agent.FrameStdin, ID: 1, Payload: make([]byte, 5000)}
	if _, err := fromHost.Write(cut.Append(nil)[:3000]); err != nil {
		t.Fatal(err)
	}
	// The first one's receiver would take the answers from the second: it must be gone.
	_ = fromHost.SetReadDeadline(time.Now())
	<-first.Done()
	_ = fromHost.SetReadDeadline(time.Time{})
	second, err := agent.Dial(limit(t), fromHost)
	if err != nil {
		t.Fatal(err)
	}
	if code, err := second.Exec(limit(t), sh("while [ -e "+mark+" ]; do sleep 0.02; done; exit 3")); code != 3 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	_ = second.Close()
}

// frames turns fuzzed bytes into frames that are whole, or the checksum would hide everything behind it: a type, an ID, a length, the payload.
func frames(b []byte) []byte {
	var out []byte
	for len(b) >= 3 {
		n := min(int(b[2]), len(b)-3)
		f := agent.Frame{Type: agent.FrameType(b[0]), ID: uint32(b[1]), Payload: b[3 : 3+n]}
		if f.Type == agent.FrameExec && agent.Decode(f.Payload, new(agent.Exec)) == nil {
			f.Payload = []byte(`{"Argv":["/nowhere/x"],"Stdin":true}`) // nothing that would run
		}
		out = f.Append(out)
		b = b[3+n:]
	}
	return out
}

// FuzzServer is a host that says anything: the guest does not panic, and Serve ends with the stream.
func FuzzServer(f *testing.F) {
	add := func(list ...agent.Frame) {
		var b []byte
		for _, x := range list {
			b = append(append(b, byte(x.Type), byte(x.ID), byte(len(x.Payload))), x.Payload...)
		}
		f.Add(b)
	}
	hello := agent.Frame{Type: agent.FrameHello, Payload: []byte(`{"Nonce":"1","Version":1}`)}
	exec := agent.Frame{Type: agent.FrameExec, ID: 1, Payload: []byte(`{"Argv":["/nowhere/x"]}`)}
	add(hello, exec, agent.Frame{Type: agent.FrameStdin, ID: 1, Payload: []byte("x")}, agent.Frame{Type: agent.FrameSignal, ID: 1, Payload: []byte{9}})
	add(hello, exec, exec, hello)
	add(hello, agent.Frame{Type: agent.FrameCall, ID: 2, Payload: []byte(`{"Method":"status"}`)}, agent.CreditFrame(1, agent.FrameStdout, 9))
	add(hello, agent.Frame{Type: agent.FrameResize, ID: 1, Payload: []byte(`{"Rows":1}`)}, agent.Frame{Type: agent.FrameExit})
	f.Fuzz(func(t *testing.T, b []byte) {
		port := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(frames(b)), io.Discard}
		if err := newServer().Serve(port); err != io.EOF {
			t.Error(err)
		}
	})
}
