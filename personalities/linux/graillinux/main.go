// Command graillinux runs one Linux VM: it reads a hv.Spec from descriptor 3, starts QEMU in a jail of its own, waits for the guest's
// agent, runs the VM's program through it, and writes a hv.Report at the end. It is to a Linux VM what grailvm is to a native one: it is
// started by graild (hv.Launch), answers the same control socket, and outlives graild. Its death ends QEMU.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/vcpu/qemu"
)

func main() {
	qemu.JailMain()
	started := time.Now()
	spec, err := readSpec()
	if err != nil {
		fmt.Fprintln(os.Stderr, "graillinux:", err)
		os.Exit(1)
	}
	v := newVM(spec)
	end := v.run()
	end.Name, end.Started, end.Ended = spec.Name, started, time.Now()
	end.Console = v.console.Lines()
	end.Stats = v.stats()
	_ = os.RemoveAll(spec.Foreign.Dir) // what is left there costs a little space
	writeReport(spec.Report, &end)
}

// maxSpec bounds the specification in bytes.
const maxSpec = 1 << 20

func readSpec() (*hv.Spec, error) {
	f := os.NewFile(hv.SpecFD, "spec")
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxSpec))
	if err != nil {
		return nil, fmt.Errorf("specification on descriptor %d: %w (graillinux is started by graild)", hv.SpecFD, err)
	}
	spec := new(hv.Spec)
	if err := json.Unmarshal(b, spec); err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	if spec.Foreign == nil {
		return nil, fmt.Errorf("the specification names no machine")
	}
	return spec, nil
}

func writeReport(fd int, r *hv.Report) {
	b, err := json.Marshal(r)
	if err != nil || fd < 0 {
		return
	}
	for at := int64(0); at < int64(len(b)); {
		n, err := unix.Pwrite(fd, b[at:], at)
		if err != nil {
			return
		}
		at += int64(n)
	}
}
