package main

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/grailos/grail/drivervms/console/serve"
	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
)

// driver joins the server with the grail system calls. It runs on one goroutine.
type driver struct {
	server *serve.Server
	host   *program.Host
	maps   map[uint64]*program.Mapping
	events uint64 // attachments that came and went
}

// collectEvery is how many attachments that come or go, each of which leaves some KiB behind, are between two runs of the collector.
const collectEvery = 64

// report writes the status page and tells of consoles that cannot be served any more.
func (d *driver) report() {
	d.host.Served(d.server.Pieces, d.server.Bytes)
	for _, dead := range d.server.Deaths {
		d.host.Say("console %d is no longer served: %s", dead.ID, dead.Reason)
		d.host.Dead(dead.ID, dead.Reason)
	}
	d.server.Deaths = d.server.Deaths[:0]
}

// handle does what the host asks for.
func (d *driver) handle(m abi.Message) error {
	answer := abi.Message{Type: abi.MsgDone, ID: m.ID}
	switch m.Type {
	case abi.MsgAttach:
		if err := d.attach(m); err != nil {
			answer.Text = err.Error()
		}
	case abi.MsgDetach:
		d.server.Detach(m.ID)
		if mp := d.maps[m.ID]; mp != nil {
			mp.Unmap()
			delete(d.maps, m.ID)
		}
	case abi.MsgStats:
		answer.Type, answer.Text = abi.MsgStats, fmt.Sprintf(`{"pieces": %d, "bytes": %d}`, d.server.Pieces, d.server.Bytes)
	case abi.MsgTest:
		return d.host.Test(m, d.server.Test)
	case abi.MsgInject:
		d.host.Inject(m.Text, d.server, nil, func(misbehave func()) { d.server.Step = misbehave })
		return nil
	default:
		return nil
	}
	if d.events++; d.events%collectEvery == 0 {
		runtime.GC()
	}
	return d.host.Channel.Send(answer)
}

func (d *driver) attach(m abi.Message) error {
	a := m.Attach
	if a == nil || len(a.Regions) != 2 || len(a.Queues) != 1 {
		return errors.New("a console has a ring, a log and one queue")
	}
	if d.maps[m.ID] != nil {
		return serve.ErrAttached
	}
	cfg, err := serve.ParseLogConfig(m.Text)
	if err != nil {
		return err
	}
	mp := &program.Mapping{}
	var mem [2][]byte
	for i, r := range a.Regions {
		if mem[i], err = mp.Add(r.FD, r.Offset, r.Size); err != nil {
			mp.Unmap()
			return fmt.Errorf("region %d: %w", i, err)
		}
	}
	bell := ring.DoorbellOf(int(a.Queues[0].KickFD))
	if err := d.server.Attach(m.ID, cfg, mem[serve.RegionRing], mem[serve.RegionLog], bell); err != nil {
		mp.Unmap()
		return err
	}
	d.maps[m.ID] = mp
	return nil
}
