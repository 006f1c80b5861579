// Command grailport is the vhost-user portal of one driver VM: the control plane of its disks' sockets. Package
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
	"github.com/grailos/grail/ring/vhostuser"
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
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	spec, err := readSpec(os.NewFile(hv.SpecFD, "spec"))
	if err != nil {
		return err
	}
	p := newPortal(spec)
	for _, d := range spec.Disks {
		l, err := listener(d.Listen)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.Disk, err)
		}
		go p.acceptClients(d, l)
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
	if len(s.Disks) == 0 {
		return s, errors.New("specification without disks")
	}
	for _, d := range s.Disks {
		if d.Queues < 1 || d.Queues > vhostuser.MaxQueues || len(d.Config) > vhostuser.MaxConfig {
			return s, fmt.Errorf("disk %s: %d queues, %d bytes of configuration", d.Disk, d.Queues, len(d.Config))
		}
	}
	return s, nil
}
