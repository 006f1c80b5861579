// Command guest is the net driver VM's program: a static binary that grailvm runs as a driver. It takes attachments over
// its control channel and switches their frames, with the uplink in its capability table if there is one.
package main

import (
	"encoding/binary"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

func main() { program.Main("net", run) }

func run(h *program.Host) error {
	var up vswitch.Uplink
	for _, c := range h.Caps {
		if c.Kind == abi.CapPacket && c.Name == vswitch.UplinkName && c.Rights == abi.RightRead|abi.RightWrite {
			up = newUplink(c.FD, binary.LittleEndian.Uint64(c.Config[:]))
			h.Say("uplink on capability %d", c.FD)
			break
		}
	}
	d := newDriver(vswitch.Config{Uplink: up, Refuse: h.Fail, Poll: ring.PollerConfig{Poll: guest.WaitAlone}}, h)
	d.sw.CPU = program.CPU
	if err := h.Channel.Send(abi.Message{Type: abi.MsgReady}); err != nil {
		return err
	}
	return d.loop()
}
