package agent

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

// FuzzClient is a guest that says anything: the host gets errors, and neither panics nor hangs.
func FuzzClient(f *testing.F) {
	// Fuzzed bytes become frames that are whole, or the checksum would hide everything behind it: a type, an ID, a length, the payload.
	add := func(list ...Frame) {
		var b []byte
		for _, x := range list {
			b = append(append(b, byte(x.Type), byte(x.ID), byte(len(x.Payload))), x.Payload...)
		}
		f.Add(b)
	}
	add(Frame{FrameStdout, 1, []byte("x")}, Frame{FrameExit, 1, []byte(`{"Code":-3,"Error":"\u001b"}`)})
	add(CreditFrame(1, FrameStdin, 1<<30))
	add(Frame{FrameExit, 1, []byte(`{}`)}, Frame{FrameReply, 2, []byte(`{"Result":{"Main":{"Code":-1}}}`)})
	add(Frame{FrameReply, 2, []byte(`{"Result":7}`)}, Frame{FrameHello, 0, nil}, Frame{FrameExec, 1, nil})
	f.Fuzz(func(t *testing.T, b []byte) {
		var said []byte
		for len(b) >= 3 {
			n := min(int(b[2]), len(b)-3)
			frame := Frame{FrameType(b[0]), uint32(b[1]), b[3 : 3+n]}
			said = frame.Append(said)
			b = b[3+n:]
		}
		ours, theirs := net.Pipe()
		go func() {
			in := NewReader(theirs)
			h, err := in.Hello()
			if err == nil {
				answer := Frame{Type: FrameHello, Payload: append([]byte(nil), h.Payload...)}
				_, err = theirs.Write(append(answer.Append(nil), said...))
			}
			for err == nil {
				_, err = in.Next()
				if err == nil && len(said) == 0 {
					break
				}
				_ = theirs.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			}
			_ = theirs.Close()
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, err := Dial(ctx, ours)
		if err != nil {
			t.Fatal(err)
		}
		code, _ := c.Exec(ctx, ExecOptions{Process: Process{Argv: []string{"x"}}})
		if code < 0 || code > 255 {
			t.Errorf("code %d", code)
		}
		_, _ = c.Status(ctx)
		_ = c.Close()
		if ctx.Err() != nil {
			t.Error("hung")
		}
	})
}

func TestDialErrors(t *testing.T) {
	// Nobody answers.
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, ours); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	// Somebody of another version.
	ours, theirs = net.Pipe()
	go func() {
		in := NewReader(theirs)
		f, err := in.Hello()
		var h Hello
		if err != nil || Decode(f.Payload, &h) != nil {
			return
		}
		h.Version++
		p, _ := Encode(h)
		answer := Frame{Type: FrameHello, Payload: p}
		_, _ = theirs.Write(answer.Append([]byte("left over by somebody")))
	}()
	if _, err := Dial(context.Background(), ours); !errors.Is(err, ErrVersion) {
		t.Errorf("another version: %v", err)
	}
	// The guest goes.
	ours, theirs = net.Pipe()
	_ = theirs.Close()
	if _, err := Dial(context.Background(), ours); err == nil {
		t.Error("no guest: no error")
	}
}
