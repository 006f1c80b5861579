package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// probeEchoes is how many datagrams a probe is.
const probeEchoes = 3

// probePatience is how long a datagram is repeated: whoever probes has less patience.
const probePatience = time.Minute

// probes echoes at the request of whoever is at the other end of in and out, until in ends, and goes on after errors. One line is one command:
//
//	pace US     a datagram each so many microseconds; 0, as in the beginning: none
//	probe N     some datagrams now; answered "probe N ECHOES US" when they have come back, with how many did since the last probe,
//	            and the longest time that one of these took
//
// What goes wrong is said at once: "error WHAT" when nothing comes back for a long time, "bad changed WHAT" for a datagram that came back changed.
func (h *host) probes(ctx context.Context, addr netip.Addr, size int, in io.Reader, out io.Writer) error {
	e, err := h.echoTo(ctx, addr, size)
	if err != nil {
		return err
	}
	h.patience = probePatience
	fmt.Fprintln(out, "ready")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	commands := make(chan string)
	lines := bufio.NewScanner(in)
	go func() {
		defer close(commands)
		for lines.Scan() {
			select {
			case commands <- lines.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	next := func() {
		switch err := e.next(ctx); {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, errChanged):
			fmt.Fprintln(out, "bad changed", err)
		default:
			fmt.Fprintln(out, "error", err)
		}
	}
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	var said uint64 // datagrams, by the last answer
	for {
		select {
		case line, more := <-commands:
			if !more {
				return lines.Err()
			}
			verb, arg, _ := strings.Cut(line, " ")
			n, err := strconv.ParseUint(arg, 10, 32)
			switch {
			case err == nil && verb == "pace" && n > 0:
				tick.Reset(time.Duration(n) * time.Microsecond)
			case err == nil && verb == "pace":
				tick.Reset(time.Hour)
			case err == nil && verb == "probe":
				for range probeEchoes {
					next()
				}
				fmt.Fprintf(out, "probe %d %d %d\n", n, e.n-said, e.worst.Microseconds())
				said, e.worst = e.n, 0
			default:
				fmt.Fprintf(out, "error unknown command %q\n", line)
			}
		case <-tick.C:
			next()
		case <-ctx.Done():
			return nil
		}
	}
}
