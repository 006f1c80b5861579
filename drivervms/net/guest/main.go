// Command guest is the net driver VM's program: a static binary that grailvm runs as a driver. It takes attachments over
// its control channel and switches their frames, with the uplink in its capability table if there is one.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

func main() {
	// As in the block driver: the data path does not allocate, and the one goroutine that there is collects what
	// attachments and requests to the services leave behind; see driver.collect.
	debug.SetGCPercent(-1)
	debug.SetPanicOnFault(true)
	defer lastWords()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "net:", err)
		os.Exit(1)
	}
}

// lastWords ends a panicking program with one write of its stack.
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
	var up vswitch.Uplink
	for _, c := range caps {
		if c.Kind == abi.CapPacket && c.Name == vswitch.UplinkName && c.Rights == abi.RightRead|abi.RightWrite {
			up = newUplink(c.FD, binary.LittleEndian.Uint64(c.Config[:]))
			fmt.Printf("net: uplink on capability %d\n", c.FD)
			break
		}
	}
	d := newDriver(vswitch.Config{Uplink: up, Poll: ring.PollerConfig{Poll: guest.WaitAlone}}, ch, status)
	if err := ch.Send(abi.Message{Type: abi.MsgReady}); err != nil {
		return err
	}
	return d.loop()
}
