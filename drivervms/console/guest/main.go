// Command guest is the console driver VM's program: a static binary that grailvm runs as a driver. It takes attachments over its control channel, each of
// them a ring that a VM's console comes from and the file of its log, both as shared memory: it needs no system call to log a line.
package main

import (
	"github.com/grailos/grail/drivervms/console/serve"
	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

func main() { program.Main("console", run) }

func run(h *program.Host) error {
	d := &driver{server: serve.New(serve.Config{Poll: ring.PollerConfig{Poll: guest.Wait}}), host: h, maps: map[uint64]*program.Mapping{}}
	d.server.Watch(h.Channel.FD())
	if err := h.Channel.Send(abi.Message{Type: abi.MsgReady}); err != nil {
		return err
	}
	return h.Loop(d.server, d.handle, d.report)
}
