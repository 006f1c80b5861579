// Command grailport is the vhost-user portal of one driver VM: the control plane of its devices' sockets. Package
// hv describes how graild works with it (hv.PortalSpec and what follows). It finds its specification on
// descriptor 3, opens no path, and runs until it is killed. Its arguments are for people and are ignored.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
)

// maxSpec bounds the specification, in bytes.
const maxSpec = 1 << 20

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "grailport:", err)
		os.Exit(1)
	}
}

func run() error {
	_ = hv.TuneRuntime() // a host on which that fails pays a little more
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	spec, err := readSpec(os.NewFile(hv.SpecFD, "spec"))
	if err != nil {
		return err
	}
	p := newPortal(spec)
	for _, d := range spec.Devices {
		l, err := listener(d.Listen)
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Name, err)
		}
		go p.acceptClients(newDevice(d), l)
	}
	return p.acceptControl(spec.Control)
}

// readSpec reads and checks the specification.
func readSpec(f *os.File) (hv.PortalSpec, error) {
	var s hv.PortalSpec
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxSpec))
	if err != nil {
		return s, fmt.Errorf("specification on descriptor %d: %w; this program is started by graild", hv.SpecFD, err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("specification on descriptor %d: %w; this program is started by graild", hv.SpecFD, err)
	}
	if len(s.Devices) == 0 {
		return s, errors.New("specification without devices")
	}
	reserved := 0
	for _, d := range s.Devices {
		if err := checkDevice(d); err != nil {
			return s, fmt.Errorf("device %s: %w", d.Name, err)
		}
		if d.Kind == hv.PortalNet {
			reserved += d.Queues
		}
	}
	if reserved > hv.MaxPortalQueues {
		return s, fmt.Errorf("network cards with %d queues in all, the limit is %d", reserved, hv.MaxPortalQueues)
	}
	return s, nil
}
