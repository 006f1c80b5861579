package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/grailos/grail/hv/guest"
)

// link is a guest.NIC's pair of queues, or a test's.
type link interface {
	Send(frames ...[]byte) (int, error)
	ReceiveWithin(bufs [][]byte, timeout time.Duration) (int, error)
}

// Sizes and times.
const (
	batch      = 32 // frames taken at once
	frameBytes = 2048
	echoPort   = 7                     // RFC 862
	retryAfter = 20 * time.Millisecond // for requests without an answer
)

// host is one end of the network: it answers what concerns it, and remembers who is where.
type host struct {
	link    link
	mac     mac
	addr    netip.Prefix
	gateway netip.Addr
	bufs    [][]byte
	known   map[netip.Addr]mac // of answers to our ARP requests
	asked   netip.Addr         // the last one that we asked for

	patience time.Duration // how long a request is repeated
	answered int           // requests of others
}

func newHost(l link, m mac, addr netip.Prefix, gateway netip.Addr) *host {
	h := &host{link: l, mac: m, addr: addr, gateway: gateway, known: map[netip.Addr]mac{}, patience: patience}
	for range batch {
		h.bufs = append(h.bufs, make([]byte, 0, frameBytes))
	}
	return h
}

// receive waits for at most a time for frames, answers those that ask for something, and calls each for the others.
func (h *host) receive(within time.Duration, each func(packet)) error {
	n, err := h.link.ReceiveWithin(h.bufs, within)
	if errors.Is(err, guest.ErrTimeout) {
		return nil
	}
	if err != nil {
		return err
	}
	var answers [][]byte
	for _, b := range h.bufs[:n] {
		p, ok := decode(b)
		if !ok || p.dst != h.addr.Addr() {
			continue
		}
		if a := h.answer(p); a != nil {
			answers = append(answers, a)
			continue
		}
		if p.proto == 0 {
			if p.op == arpReply && p.src == h.asked {
				h.known[p.src] = p.from
			}
			continue
		}
		if each != nil {
			each(p)
		}
	}
	h.answered += len(answers)
	_, err = h.link.Send(answers...)
	return err
}

// answer returns the answer to a request, or nil.
func (h *host) answer(p packet) []byte {
	switch {
	case p.proto == 0 && p.op == arpRequest:
		return arpFrame(arpReply, h.mac, p.from, p.dst, p.src)
	case p.proto == protoICMP && p.kind == icmpRequest:
		return icmpFrame(h.mac, p.from, p.dst, p.src, icmpReply, p.a, p.b, p.payload)
	case p.proto == protoUDP && p.b == echoPort && p.a != echoPort:
		return udpFrame(h.mac, p.from, p.dst, p.src, echoPort, p.a, p.payload)
	}
	return nil
}

// serve answers until ctx ends.
func (h *host) serve(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := h.receive(100*time.Millisecond, nil); err != nil {
			return err
		}
	}
	fmt.Printf("%d requests answered\n", h.answered)
	return nil
}

// errSilent is wrapped by what says who did not answer.
var errSilent = errors.New("no answer")

// patience is how long a request is repeated, unless the host has another.
const patience = 5 * time.Second

// ask sends a request again and again until it is answered; done says so.
func (h *host) ask(ctx context.Context, request []byte, again time.Duration, done func() bool, each func(packet)) (sent int, err error) {
	limit := time.Now().Add(h.patience)
	for !done() {
		if ctx.Err() != nil {
			return sent, ctx.Err()
		}
		if time.Now().After(limit) {
			return sent, errSilent
		}
		if _, err := h.link.Send(request); err != nil {
			return sent, err
		}
		sent++
		for until := time.Now().Add(again); !done(); {
			left := time.Until(until)
			if left <= 0 {
				break
			}
			if err := h.receive(left, each); err != nil {
				return sent, err
			}
		}
	}
	return sent, nil
}

// find returns the Ethernet address by which an IP address is reached.
func (h *host) find(ctx context.Context, to netip.Addr) (mac, error) {
	if !h.addr.Contains(to) {
		if !h.gateway.IsValid() {
			return mac{}, fmt.Errorf("%s is outside of %s, and there is no gateway", to, h.addr.Masked())
		}
		to = h.gateway
	}
	h.asked = to
	_, err := h.ask(ctx, arpFrame(arpRequest, h.mac, broadcast, h.addr.Addr(), to), 10*retryAfter,
		func() bool { _, ok := h.known[to]; return ok }, nil)
	if err != nil {
		return mac{}, fmt.Errorf("ARP for %s: %w", to, err)
	}
	return h.known[to], nil
}
