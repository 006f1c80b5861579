// Command guest is the block driver VM's program: a static binary that grailvm runs as a driver. It takes
// attachments over its control channel and serves them from the devices in its capability table.
package main

import (
	"fmt"
	"time"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

func main() { program.Main("blk", run) }

func run(h *program.Host) error {
	var disks []serve.Disk
	for _, c := range h.Caps {
		if c.Kind == abi.CapDevice {
			disks = append(disks, serve.Disk{
				Name: c.Name, FD: c.FD, Size: c.Size, ReadOnly: c.Rights&abi.RightWrite == 0,
			})
			h.Say("disk %s, %d bytes, read-only %t", c.Name, c.Size, c.Rights&abi.RightWrite == 0)
		}
	}
	if len(disks) > abi.MaxDevBatch {
		return fmt.Errorf("%d disks, the limit is %d", len(disks), abi.MaxDevBatch)
	}
	dev := newDevice(disks)
	d := &driver{
		server: serve.New(dev, disks, ring.PollerConfig{Poll: guest.WaitAlone}),
		host:   h, maps: map[uint64]*program.Mapping{}, state: h.State,
	}
	start := time.Now()
	dev.now = func() time.Time { return start.Add(d.server.Now()) } // near enough, and free
	d.server.CPU = program.CPU
	d.server.Refuse = h.Fail
	d.server.Watch(h.Channel.FD())
	if err := h.Channel.Send(abi.Message{Type: abi.MsgReady}); err != nil {
		return err
	}
	return d.loop()
}
