// Command guest is the block driver VM's program: a static binary that grailvm runs as a driver. It takes
// attachments over its control channel and serves them from the devices in its capability table.
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

func main() {
	// The data path does not allocate. What attachments leave behind is collected when one ends (see
	// driver.handle), by the one goroutine that there is: a collector that starts by itself would have to wait
	// for it while it waits for work outside of the scheduler's sight.
	debug.SetGCPercent(-1)
	debug.SetPanicOnFault(true)
	defer lastWords()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "blk:", err)
		os.Exit(1)
	}
}

// lastWords ends a panicking program as the Go runtime does, but writes its stack at once: the runtime writes it word by
// word, and each of these 500 writes would be an exit from the VM, while the clients wait for the next instance.
func lastWords() {
	if v := recover(); v != nil {
		fmt.Fprintf(os.Stderr, "panic: %v\n\n%s", v, debug.Stack())
		os.Exit(2)
	}
}

func run() error {
	caps, err := guest.Caps()
	if err != nil {
		return err
	}
	ch, err := guest.OpenChannel()
	if err != nil {
		return err
	}
	status, err := guest.OpenStatus()
	if err != nil {
		return err
	}
	var disks []serve.Disk
	for _, c := range caps {
		if c.Kind == abi.CapDevice {
			disks = append(disks, serve.Disk{
				Name: c.Name, FD: c.FD, Size: c.Size, ReadOnly: c.Rights&abi.RightWrite == 0,
			})
			fmt.Printf("blk: disk %s, %d bytes, read-only %t\n", c.Name, c.Size, c.Rights&abi.RightWrite == 0)
		}
	}
	if len(disks) > abi.MaxDevBatch {
		return fmt.Errorf("%d disks, the limit is %d", len(disks), abi.MaxDevBatch)
	}
	d := &driver{
		server: serve.New(newDevice(disks), disks, ring.PollerConfig{Poll: guest.WaitAlone}),
		ch:     ch, status: status, maps: map[uint64]*mapping{},
	}
	d.server.Watch(ch.FD())
	if err := ch.Send(abi.Message{Type: abi.MsgReady}); err != nil {
		return err
	}
	return d.loop()
}
