package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// domain is put behind names without a dot, so that a name server knows them for local ones.
const domain = "grail."

// lookUp asks the name server for a name's address.
func (h *host) lookUp(ctx context.Context, server netip.Addr, name string) (netip.Addr, error) {
	if !server.IsValid() {
		return netip.Addr{}, fmt.Errorf("%q is no address, and the port has no name server", name)
	}
	full := strings.TrimSuffix(name, ".") + "."
	if strings.Count(full, ".") == 1 {
		full += domain
	}
	n, err := dnsmessage.NewName(full)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("name %q: %w", name, err)
	}
	id, port := uint16(rand.Uint32()), ephemeral()
	query := dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := query.Pack()
	if err != nil {
		return netip.Addr{}, err
	}
	to, err := h.find(ctx, server)
	if err != nil {
		return netip.Addr{}, err
	}
	var answer *dnsmessage.Message
	_, err = h.ask(ctx, udpFrame(h.mac, to, h.addr.Addr(), server, port, 53, b), 10*retryAfter, func() bool { return answer != nil }, func(p packet) {
		var m dnsmessage.Message
		if p.proto == protoUDP && p.src == server && p.a == 53 && p.b == port && m.Unpack(p.payload) == nil && m.ID == id && m.Response {
			answer = &m
		}
	})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("name server %s: %w", server, err)
	}
	for _, r := range answer.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok {
			return netip.AddrFrom4(a.A), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("there is no name %q (%s)", name, answer.RCode)
}

// ephemeral returns a port of our own.
func ephemeral() uint16 { return uint16(49152 + rand.N(16384)) }

// pingAll sends count echo requests, one after the other, and says how long each took.
func (h *host) pingAll(ctx context.Context, addr netip.Addr, count int) error {
	to, err := h.find(ctx, addr)
	if err != nil {
		return err
	}
	id := uint16(rand.Uint32())
	for i := range count {
		payload := []byte(fmt.Sprintf("netcheck %d", i))
		got, began := false, time.Now()
		_, err := h.ask(ctx, icmpFrame(h.mac, to, h.addr.Addr(), addr, icmpRequest, id, uint16(i), payload), time.Second, func() bool { return got }, func(p packet) {
			got = got || p.proto == protoICMP && p.kind == icmpReply && p.src == addr && p.a == id && p.b == uint16(i) && bytes.Equal(p.payload, payload)
		})
		if err != nil {
			return fmt.Errorf("ping %s: %w", addr, err)
		}
		fmt.Printf("%d: answer from %s after %v\n", i, addr, time.Since(began).Round(time.Microsecond))
	}
	return nil
}

// echoes is a sequence of datagrams to an echo port, each of which is sent until it has come back.
type echoes struct {
	h       *host
	addr    netip.Addr
	to      mac
	port    uint16
	payload []byte
	rng     *rand.ChaCha8

	n, repeated uint64
	worst       time.Duration
}

// errChanged is wrapped by what says that another datagram came back than was sent.
var errChanged = errors.New("came back changed")

// echoTo finds the host at addr, for datagrams of size bytes.
func (h *host) echoTo(ctx context.Context, addr netip.Addr, size int) (*echoes, error) {
	to, err := h.find(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &echoes{h: h, addr: addr, to: to, port: ephemeral(), payload: make([]byte, size), rng: rand.NewChaCha8([32]byte{7})}, nil
}

// next sends the next datagram and compares what comes back. Errors: errSilent, errChanged, those of ctx and of the port.
func (e *echoes) next(ctx context.Context) error {
	_, _ = e.rng.Read(e.payload)
	n := e.n
	be.PutUint64(e.payload, n)
	got, began := false, time.Now()
	var wrong error
	request := udpFrame(e.h.mac, e.to, e.h.addr.Addr(), e.addr, e.port, echoPort, e.payload)
	sent, err := e.h.ask(ctx, request, retryAfter, func() bool { return got || wrong != nil }, func(p packet) {
		if p.proto != protoUDP || p.src != e.addr || p.a != echoPort || p.b != e.port || len(p.payload) < 8 || be.Uint64(p.payload) != n {
			return // or a late answer to an earlier one
		}
		if !bytes.Equal(p.payload, e.payload) {
			wrong = fmt.Errorf("datagram %d %w", n, errChanged)
		}
		got = true
	})
	e.n++
	switch {
	case wrong != nil:
		return wrong
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("echo from %s: %w", e.addr, err)
	}
	e.repeated += uint64(sent - 1)
	e.worst = max(e.worst, time.Since(began))
	return nil
}

// echoFor sends datagrams to the echo port for a time, one after the other and each until it has come back, and compares.
func (h *host) echoFor(ctx context.Context, addr netip.Addr, limit time.Duration, size int) error {
	e, err := h.echoTo(ctx, addr, size)
	if err != nil {
		return err
	}
	for until := time.Now().Add(limit); time.Now().Before(until) && ctx.Err() == nil; {
		if err := e.next(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	fmt.Printf("ok: %d datagrams of %d bytes came back, %d were repeated, longest wait %v\n", e.n, size, e.repeated, e.worst.Round(time.Microsecond))
	return nil
}
