package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qemu"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}` + "\n"

// fake is a QEMU that says what a test wants.
type fake struct {
	conn net.Conn
	in   *bufio.Scanner
}

// fakeQEMU returns a client that has been greeted, and its QEMU; answer is called for each command and
// returns what to say, with $ID replaced. "" says nothing.
func fakeQEMU(t *testing.T, answer func(command string, args json.RawMessage) string, onEvent func(message)) (*client, *fake) {
	t.Helper()
	a, b := net.Pipe()
	f := &fake{conn: b, in: bufio.NewScanner(b)}
	f.in.Buffer(nil, 1<<20)
	if onEvent == nil {
		onEvent = func(message) {}
	}
	c := newClient(a, &Log{}, onEvent)
	t.Cleanup(func() { c.close(ErrClosed); b.Close() })
	go func() {
		io.WriteString(b, greeting)
		for f.in.Scan() {
			var q struct {
				Execute   string          `json:"execute"`
				Arguments json.RawMessage `json:"arguments"`
				ID        json.RawMessage `json:"id"`
			}
			if json.Unmarshal(f.in.Bytes(), &q) != nil {
				return
			}
			say := `{"return": {}, "id": $ID}`
			if q.Execute != "qmp_capabilities" {
				say = answer(q.Execute, q.Arguments)
			}
			if say != "" {
				// In a goroutine: a net.Pipe has no buffer, and answers may come in any order.
				go io.WriteString(b, strings.ReplaceAll(say, "$ID", string(q.ID))+"\r\n")
			}
		}
	}()
	if err := c.greet(context.Background()); err != nil {
		t.Fatal(err)
	}
	return c, f
}

func TestCommands(t *testing.T) {
	big := strings.Repeat("x", 3<<20)
	c, _ := fakeQEMU(t, func(command string, args json.RawMessage) string {
		switch command {
		case "big":
			return `{"return": "` + big + `", "id": $ID}`
		case "refuse":
			return `{"error": {"class": "DeviceNotFound", "desc": "no ` + string(args[1:4]) + `"}, "id": $ID}`
		case "noise":
			return `{"return": 1, "id": 999} {"return": 2} {"return": 3, "id": "x"} {"foo": 1} {"return": 4, "id": $ID}`
		case "wrong":
			return `{"return": "text", "id": $ID}`
		}
		return ""
	}, nil)
	ctx := context.Background()
	var s string
	if err := c.run(ctx, "big", nil, &s); err != nil || s != big {
		t.Errorf("a reply of 3 MiB: %d bytes, %v", len(s), err)
	}
	var refused *CommandError
	if err := c.run(ctx, "refuse", "abcd", nil); !errors.As(err, &refused) || refused.Class != "DeviceNotFound" || refused.Desc != "no abc" {
		t.Errorf("refused: %v", err)
	}
	var n int
	if err := c.run(ctx, "noise", nil, &n); err != nil || n != 4 {
		t.Errorf("among noise: %d, %v", n, err)
	}
	if err := c.run(ctx, "wrong", nil, &n); !errors.Is(err, ErrProtocol) {
		t.Errorf("a reply of the wrong type: %v, want ErrProtocol", err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := c.run(short, "silence", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v, want a time-out", err)
	}
	if err := c.run(ctx, "noise", nil, &n); err != nil {
		t.Errorf("after a time-out: %v", err)
	}
	if len(c.pending) != 0 {
		t.Errorf("%d commands are still remembered", len(c.pending))
	}
}

// TestConcurrentCommands sends commands from several goroutines; each must get its own answer.
func TestConcurrentCommands(t *testing.T) {
	c, _ := fakeQEMU(t, func(_ string, args json.RawMessage) string {
		return `{"return": ` + string(args) + `, "id": $ID}`
	}, nil)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 50 {
				var got int
				if err := c.run(context.Background(), "echo", g*1000+i, &got); err != nil || got != g*1000+i {
					t.Errorf("got %d, %v; want %d", got, err, g*1000+i)
					return
				}
			}
		}()
	}
	wg.Wait()
}

func TestTooManyPending(t *testing.T) {
	c, _ := fakeQEMU(t, func(string, json.RawMessage) string { return "" }, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range maxPending {
		wg.Add(1)
		go func() { defer wg.Done(); _ = c.run(ctx, "silence", nil, nil) }()
	}
	until(t, 5*time.Second, "the commands", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.pending) == maxPending
	})
	if err := c.run(ctx, "one more", nil, nil); err == nil || !strings.Contains(err.Error(), "wait for QEMU") {
		t.Errorf("one more: %v", err)
	}
	cancel()
	wg.Wait()
}

func TestHostileQEMU(t *testing.T) {
	for _, c := range []struct {
		name, says string
		want       error
	}{
		{"no JSON", "hello\n", ErrProtocol},
		{"no greeting", `{"return": {}}`, ErrProtocol},
		{"an array", `[1,2]`, ErrProtocol},
		{"deep", strings.Repeat(`{"QMP":`, 20000), ErrProtocol},
		{"endless", `{"QMP": "` + strings.Repeat("a", maxMessage), ErrProtocol},
		{"end", "", io.EOF},
		{"half", `{"QMP": {`, io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := net.Pipe()
			go func() { io.WriteString(b, c.says); b.Close() }()
			cl := newClient(a, &Log{}, func(message) {})
			if err := cl.greet(context.Background()); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		if err := newClient(a, &Log{}, func(message) {}).greet(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want a time-out", err)
		}
	})
	t.Run("garbage later", func(t *testing.T) {
		c, f := fakeQEMU(t, func(string, json.RawMessage) string { return "garbage" }, nil)
		if err := c.run(context.Background(), "x", nil, nil); !errors.Is(err, ErrProtocol) {
			t.Errorf("%v, want ErrProtocol", err)
		}
		if err := c.run(context.Background(), "x", nil, nil); !errors.Is(err, ErrProtocol) {
			t.Errorf("afterwards %v, want ErrProtocol", err)
		}
		_ = f
	})
	t.Run("gone", func(t *testing.T) {
		c, f := fakeQEMU(t, func(string, json.RawMessage) string { return "" }, nil)
		time.AfterFunc(10*time.Millisecond, func() { f.conn.Close() })
		if err := c.run(context.Background(), "x", nil, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("%v, want ErrClosed", err)
		}
		if _, ok := <-c.events(context.Background()); ok {
			t.Error("an event from the dead")
		}
	})
}

// TestEventFlood has QEMU send more events than anybody reads; the newest remain, and commands are served.
func TestEventFlood(t *testing.T) {
	const floods = 3 * eventBacklog
	seen := 0
	var c *client
	c, _ = fakeQEMU(t, func(command string, _ json.RawMessage) string {
		var b strings.Builder
		for i := range floods {
			fmt.Fprintf(&b, `{"event": "E", "data": {"n": %d}, "timestamp": {"seconds": 1, "microseconds": 2}}`+"\n", i)
		}
		return b.String() + `{"return": {}, "id": $ID}`
	}, func(message) { seen++ })
	ctx, cancel := context.WithCancel(context.Background())
	events := c.events(ctx)
	if err := c.run(ctx, "flood", nil, nil); err != nil {
		t.Fatal(err)
	}
	if seen != floods {
		t.Errorf("%d events were handled, want %d", seen, floods)
	}
	cancel()
	var got []float64
	for e := range events {
		got = append(got, e.Data["n"].(float64))
		if e.Event != "E" || e.Timestamp.Microseconds != 2 {
			t.Fatalf("event %+v", e)
		}
	}
	if len(got) != eventBacklog || got[0] != floods-eventBacklog || got[len(got)-1] != floods-1 {
		t.Errorf("%d events, from %v to %v; want the last %d", len(got), got[0], got[len(got)-1], eventBacklog)
	}
}

// TestDomain has go-qemu speak through our client.
func TestDomain(t *testing.T) {
	c, _ := fakeQEMU(t, func(command string, _ json.RawMessage) string {
		switch command {
		case "query-status":
			return `{"return": {"status": "paused", "running": false, "singlestep": false}, "id": $ID}`
		case "query-version":
			return `{"return": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "p"}, "id": $ID}`
		}
		return `{"error": {"class": "CommandNotFound", "desc": "no"}, "id": $ID}`
	}, nil)
	d, err := goqemu.NewDomain(monitor{c}, "x")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if v, err := d.Version(); err != nil || v != "7.2.22" {
		t.Errorf("version %s, %v", v, err)
	}
	if s, err := d.Status(); err != nil || s != goqemu.StatusPaused {
		t.Errorf("status %v, %v", s, err)
	}
	var refused *CommandError
	if err := d.SystemReset(); !errors.As(err, &refused) {
		t.Errorf("reset: %v, want a CommandError", err)
	}
}

// TestVMEvents has a fake QEMU tell of ends, and checks which cause is kept.
func TestVMEvents(t *testing.T) {
	for _, c := range []struct {
		name   string
		events []string
		want   Cause
	}{
		{"shutdown", []string{`SHUTDOWN {"guest": true, "reason": "guest-shutdown"}`}, Shutdown},
		{"reset", []string{`SHUTDOWN {"guest": true, "reason": "guest-reset"}`}, Reset},
		{"panic", []string{`GUEST_PANICKED {"action": "pause"}`, `SHUTDOWN {"guest": false, "reason": "host-qmp-quit"}`}, Panic},
		{"quit", []string{`SHUTDOWN {"guest": false, "reason": "host-qmp-quit"}`}, Quit},
		{"signal", []string{`SHUTDOWN {"guest": false, "reason": "host-signal"}`}, Killed},
		{"unknown", []string{`SHUTDOWN {"guest": false, "reason": "\u0007"}`}, Crash},
		{"wrong types", []string{`SHUTDOWN {"guest": "yes", "reason": 7}`}, Crash},
		{"no object", []string{`SHUTDOWN []`}, Crash},
		{"strangers", []string{`DEVICE_DELETED {"device": "d-none"}`, `DEVICE_DELETED {"device": 3}`, `DEVICE_UNPLUG_GUEST_ERROR {}`, `X {}`}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVM(t.TempDir(), &Log{})
			close(v.ended) // so that nothing waits for a process
			v.client, _ = fakeQEMU(t, func(string, json.RawMessage) string {
				var b strings.Builder
				for _, e := range c.events {
					name, data, _ := strings.Cut(e, " ")
					fmt.Fprintf(&b, `{"event": %q, "data": %s}`+"\n", name, data)
				}
				return b.String() + `{"return": {}, "id": $ID}`
			}, v.onEvent)
			if err := v.Run(context.Background(), "go", nil, nil); err != nil {
				t.Fatal(err)
			}
			v.mu.Lock()
			defer v.mu.Unlock()
			if v.cause != c.want || (v.detail == "") != (c.want == "") || strings.ContainsAny(v.detail, "\a") {
				t.Errorf("cause %q (%q), want %q", v.cause, v.detail, c.want)
			}
		})
	}
}

func TestLogIsBounded(t *testing.T) {
	var l Log
	for i := range 3 * logEntries {
		l.add(toQEMU, fmt.Appendf(nil, "%d", i))
	}
	e := l.Entries()
	if len(e) != logEntries || e[0].Text != fmt.Sprint(2*logEntries) || e[len(e)-1].Text != fmt.Sprint(3*logEntries-1) {
		t.Errorf("%d entries, from %s to %s", len(e), e[0].Text, e[len(e)-1].Text)
	}
	l.add(fromQEMU, bytes.Repeat([]byte("a"), 1<<20))
	e = l.Entries()
	if last := e[len(e)-1].Text; len(last) > logEntrySize+3 {
		t.Errorf("an entry of %d bytes", len(last))
	}
	if got := printable([]byte("a\x1b[31m\x00\xff\u0085b\tc\n")); got != "a?[31m???b\tc\n" {
		t.Errorf("%q", got)
	}
}

// FuzzQMP feeds a client with anything; it must neither panic nor hang nor keep more than its bounds.
func FuzzQMP(f *testing.F) {
	f.Add([]byte(greeting + `{"return": {}, "id": 1}` + "\n" + `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`))
	f.Add([]byte(greeting + `{"error": {"class": "A", "desc": "B"}, "id": 1} {"event": "DEVICE_DELETED", "data": {"device": "d-x"}}`))
	f.Add([]byte(`{"QMP": null}`))
	f.Add([]byte(`{"QMP":{}}{"return":null,"id":1}{"event":"E","data":[[[]]],"timestamp":{"seconds":1e400}}`))
	f.Add([]byte(greeting + `{"return": {}, "id": 18446744073709551616}{"return": {}, "id": -1}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		v := newVM(t.TempDir(), &Log{})
		close(v.ended)
		a, b := net.Pipe()
		v.client = newClient(a, v.log, v.onEvent)
		go func() { io.Copy(io.Discard, b) }()
		go func() { b.Write(in); b.Close() }()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if v.client.greet(ctx) == nil {
			_, _ = v.Status(ctx)
		}
		select {
		case <-v.client.closed:
		case <-ctx.Done():
			t.Fatal("still open")
		}
		for _, e := range v.log.Entries() {
			if len(e.Text) > logEntrySize+3 {
				t.Fatalf("an entry of %d bytes", len(e.Text))
			}
		}
	})
}
