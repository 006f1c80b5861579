// Command netcheck is a native personality with a network port: it answers, or asks others. It shows how to use the small packet API of
// hv/guest, and it is what runs while net driver VMs are crashed.
//
//	netcheck serve                        answer ARP, ping, and UDP on port 7 (echo)
//	netcheck ping HOST                    send ICMP echo requests
//	netcheck echo -time 10s HOST          send UDP datagrams to port 7, each until it comes back, and compare
//	netcheck probe HOST                   echo as standard input says, and go on after errors; see host.probes
//
// HOST is an address, or a name that the port's name server knows. The exit code is 1 when HOST never answered, or answered something else.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/grailos/grail/hv/guest"
)

func main() {
	port := flag.String("port", "", "network port to use; empty for the first one")
	as := flag.String("as", "", "be another host behind the port, which is unpinned: an IPv4 `ADDRESS` of the network, with a hardware address made from it")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: netcheck [-port NAME] [-as ADDRESS] serve | ping [-count N] HOST | echo [-time D] [-size BYTES] HOST | probe [-size BYTES] HOST")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *port, *as, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "netcheck:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("say what to do: serve, ping HOST, echo HOST or probe HOST")

func run(ctx context.Context, port, as string, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	fl := flag.NewFlagSet(args[0], flag.ExitOnError)
	count := fl.Int("count", 3, "ping: requests")
	limit := fl.Duration("time", time.Second, "echo: how long")
	size := fl.Int("size", 1000, "echo, probe: bytes of each datagram, 8 to 1472")
	if err := fl.Parse(args[1:]); err != nil {
		return err
	}
	nic, err := guest.OpenNIC(port)
	if err != nil {
		return err
	}
	if !nic.Addr().IsValid() {
		return fmt.Errorf("port %s has no IPv4 address", nic.Name())
	}
	hardware, addr := nic.MAC(), nic.Addr()
	if as != "" {
		other, err := netip.ParseAddr(as)
		if err != nil || !other.Is4() || !addr.Contains(other) {
			return fmt.Errorf("-as %q is no address in %s", as, addr.Masked())
		}
		b := other.As4()
		hardware, addr = [6]byte{2, 0xff, b[0], b[1], b[2], b[3]}, netip.PrefixFrom(other, addr.Bits())
	}
	h := newHost(nic.Pairs()[0], hardware, addr, nic.Gateway())
	if args[0] == "serve" && fl.NArg() == 0 {
		fmt.Printf("%s serves on %s\n", nic.Name(), addr.Addr())
		return h.serve(ctx)
	}
	if fl.NArg() != 1 || *size < 8 || *size > 1472 {
		return errUsage
	}
	to, err := netip.ParseAddr(fl.Arg(0))
	if err != nil {
		if to, err = h.lookUp(ctx, nic.DNS(), fl.Arg(0)); err != nil {
			return err
		}
	}
	switch args[0] {
	case "ping":
		return h.pingAll(ctx, to, *count)
	case "echo":
		return h.echoFor(ctx, to, *limit, *size)
	case "probe":
		return h.probes(ctx, to, *size, os.Stdin, os.Stdout)
	}
	return errUsage
}
