package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/grailos/grail/hv/guest"
)

// wire is a link to another one. What is sent too fast is lost, as on any network.
type wire struct {
	out  chan<- []byte
	in   <-chan []byte
	lose func(n int) bool // the nth frame that is sent
	sent int
}

func (w *wire) Send(frames ...[]byte) (int, error) {
	for _, f := range frames {
		if w.sent++; w.lose != nil && w.lose(w.sent) {
			continue
		}
		select {
		case w.out <- append([]byte(nil), f...):
		default:
		}
	}
	return len(frames), nil
}

func (w *wire) ReceiveWithin(bufs [][]byte, timeout time.Duration) (int, error) {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case f := <-w.in:
		bufs[0] = append(bufs[0][:0], f...)
		return 1, nil
	case <-t.C:
		return 0, guest.ErrTimeout
	}
}

// pair returns two hosts with a wire between them. The second one serves until the test ends.
func pair(t *testing.T, lose func(n int) bool) (*host, *host) {
	ab, ba := make(chan []byte, 64), make(chan []byte, 64)
	a := newHost(&wire{out: ab, in: ba, lose: lose}, mac{2, 0, 0, 0, 0, 1}, netip.MustParsePrefix("10.0.0.2/24"), netip.Addr{})
	b := newHost(&wire{out: ba, in: ab}, mac{2, 0, 0, 0, 0, 2}, netip.MustParsePrefix("10.0.0.3/24"), netip.Addr{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a, b
}

func TestHosts(t *testing.T) {
	a, _ := pair(t, func(n int) bool { return n%5 == 2 })
	to := netip.MustParseAddr("10.0.0.3")
	if err := a.echoFor(t.Context(), to, 200*time.Millisecond, 1472); err != nil {
		t.Error(err)
	}
	if err := a.pingAll(t.Context(), to, 2); err != nil {
		t.Error(err)
	}
	if _, err := a.find(t.Context(), netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Error("found an address outside of the network")
	}
	if _, err := a.lookUp(t.Context(), netip.Addr{}, "b"); err == nil {
		t.Error("looked up a name without a server")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.pingAll(ctx, netip.MustParseAddr("10.0.0.9"), 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ping of nobody: %v", err)
	}
}

// TestChanged: an answer with other content is an error.
func TestChanged(t *testing.T) {
	ab, ba := make(chan []byte, 64), make(chan []byte, 64)
	a := newHost(&wire{out: ab, in: ba}, mac{2, 0, 0, 0, 0, 1}, netip.MustParsePrefix("10.0.0.2/24"), netip.Addr{})
	to := netip.MustParseAddr("10.0.0.3")
	a.known[to] = mac{2}
	go func() {
		for f := range ab {
			if p, ok := decode(f); ok && p.proto == protoUDP {
				p.payload[9] ^= 1
				ba <- udpFrame(p.from, a.mac, p.dst, p.src, p.b, p.a, p.payload)
			}
		}
	}()
	defer close(ab)
	if err := a.echoFor(t.Context(), to, time.Minute, 100); err == nil {
		t.Error("a changed datagram was taken")
	}
}

// TestProbes: what goes wrong is told, and it goes on.
func TestProbes(t *testing.T) {
	ab, ba := make(chan []byte, 64), make(chan []byte, 64)
	a := newHost(&wire{out: ab, in: ba}, mac{2, 0, 0, 0, 0, 1}, netip.MustParsePrefix("10.0.0.2/24"), netip.Addr{})
	to := netip.MustParseAddr("10.0.0.3")
	a.known[to] = mac{2}
	n := 0
	go func() {
		for f := range ab {
			if p, ok := decode(f); ok && p.proto == protoUDP {
				if n++; n == 5 {
					p.payload[9] ^= 1
				}
				ba <- udpFrame(p.from, a.mac, p.dst, p.src, p.b, p.a, p.payload)
			}
		}
	}()
	defer close(ab)
	in, inW := io.Pipe()
	outR, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- a.probes(t.Context(), to, 100, in, out)
		out.Close()
	}()
	lines := bufio.NewScanner(outR)
	for _, c := range []struct{ command, want string }{
		{"", "ready"}, {"probe 1", "probe 1 3 "}, {"probe 2", "bad changed"}, {"", "probe 2 3 "}, {"hello", "error"}, {"pace 100\nprobe 3", "probe 3 "}, {"pace 0\nprobe 4", "probe 4 "},
	} {
		if c.command != "" {
			fmt.Fprintln(inW, c.command)
		}
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), c.want) {
			t.Errorf("%q is answered by %q, want %q", c.command, lines.Text(), c.want)
		}
	}
	inW.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestLookUp(t *testing.T) {
	ab, ba := make(chan []byte, 64), make(chan []byte, 64)
	a := newHost(&wire{out: ab, in: ba}, mac{2, 0, 0, 0, 0, 1}, netip.MustParsePrefix("10.0.0.2/24"), netip.Addr{})
	server := netip.MustParseAddr("10.0.0.1")
	a.known[server] = mac{2}
	go func() {
		for f := range ab {
			p, ok := decode(f)
			var m dnsmessage.Message
			if !ok || p.b != 53 || m.Unpack(p.payload) != nil {
				continue
			}
			m.Response = true
			if m.Questions[0].Name.String() == "web.grail." {
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 5},
					Body: &dnsmessage.AResource{A: [4]byte{10, 0, 0, 7}}}}
			} else {
				m.RCode = dnsmessage.RCodeNameError
			}
			b, err := m.Pack()
			if err != nil {
				panic(err)
			}
			ba <- udpFrame(p.from, a.mac, p.dst, p.src, p.b, p.a, b)
		}
	}()
	defer close(ab)
	if got, err := a.lookUp(t.Context(), server, "web"); err != nil || got.String() != "10.0.0.7" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := a.lookUp(t.Context(), server, "nobody"); err == nil {
		t.Errorf("nobody is at %v", got)
	}
}

// FuzzDecode: whatever comes is refused, or lies in the frame.
func FuzzDecode(f *testing.F) {
	m, s, d := mac{2}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	f.Add(arpFrame(arpRequest, m, broadcast, s, d))
	f.Add(icmpFrame(m, m, s, d, icmpRequest, 1, 2, []byte("x")))
	f.Add(udpFrame(m, m, s, d, 1, echoPort, []byte("hello")))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := decode(b)
		if !ok {
			return
		}
		if len(p.payload) > len(b) || !p.src.Is4() || !p.dst.Is4() {
			t.Errorf("%+v", p)
		}
		h := newHost(&wire{}, m, netip.PrefixFrom(p.dst, 24), netip.Addr{})
		if a := h.answer(p); a != nil {
			if _, ok := decode(a); !ok {
				t.Errorf("the answer to %x is malformed: %x", b, a)
			}
		}
	})
}
