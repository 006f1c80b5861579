// Command grailnat is the way of one net driver's switch out of the host, in user mode: package drivervms/net/usernet in a jail
// of its own, in the host's network. It is started by graild with a net.NATSpec on descriptor 3, opens no path, and runs until it is killed or
// the switch's end of the uplink is gone. Its arguments are for people and are ignored.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/drivervms/net/usernet"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/jail"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "grailnat:", err)
		os.Exit(1)
	}
}

// heapTarget is where the collector begins to work harder: buffers of connections come and go.
const heapTarget = 256 << 20

// maxSpec bounds the specification, in bytes.
const maxSpec = 1 << 20

// calls are the system calls that sockets need. Listening sockets are handed over: neither bind nor listen is among them.
var calls = []string{"connect", "getsockname", "getpeername", "sendto", "recvfrom", "writev", "readv"}

func run() error {
	debug.SetMemoryLimit(heapTarget)
	f := os.NewFile(hv.SpecFD, "spec")
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxSpec))
	if err != nil {
		return fmt.Errorf("specification on descriptor %d: %w; this program is started by graild", hv.SpecFD, err)
	}
	f.Close()
	var spec net.NATSpec
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("specification on descriptor %d: %w; this program is started by graild", hv.SpecFD, err)
	}
	r, err := jail.Enter(jail.Config{Syscalls: calls, Domains: []int{unix.AF_INET}})
	if err != nil {
		return err
	}
	var far *os.File
	if spec.Stack >= 0 {
		// The runtime's poller takes a copy whose number it may close; the original is kept for the next graild.
		fd, err := unix.FcntlInt(uintptr(spec.Stack), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("uplink: %w", err)
		}
		far = os.NewFile(uintptr(fd), "uplink")
	}
	nat, err := usernet.New(spec.NATConfig, far)
	if err != nil {
		return err
	}
	c := &control{spec: spec, nat: nat, missing: r.Missing}
	go hv.Serve(spec.Control, c.serve)
	<-nat.Done()
	return fmt.Errorf("the switch of driver %s is gone", spec.Driver)
}
