package main

import (
	"encoding/json"
	"errors"
	"runtime"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
)

// driver joins the server with the grail system calls. It runs on one goroutine.
type driver struct {
	server *serve.Server
	host   *program.Host
	maps   map[uint64]*program.Mapping
	state  []byte // of a predecessor, until it is taken over
	// detached counts the attachments that have ended.
	detached int
}

// collectEvery is how many attachments end between two runs of the collector; each leaves some 50 KiB behind.
const collectEvery = 64

// loop serves for ever; see program.Host.Loop.
func (d *driver) loop() error { return d.host.Loop(d.server, d.handle, d.report) }

// report writes the status page and tells of clients that broke the rules.
func (d *driver) report() {
	d.host.Served(d.server.Requests, d.server.Bytes)
	for _, dead := range d.server.Deaths {
		d.host.Say("attachment %d is no longer served: %s", dead.ID, dead.Reason)
		d.host.Dead(dead.ID, dead.Reason)
	}
	d.server.Deaths = d.server.Deaths[:0]
}

// handle does what the host asks for.
func (d *driver) handle(m abi.Message) error {
	switch m.Type {
	case abi.MsgAttach:
		answer := abi.Message{Type: abi.MsgDone, ID: m.ID}
		if err := d.attach(m); err != nil {
			answer.Text = err.Error()
		}
		return d.host.Channel.Send(answer)
	case abi.MsgDetach:
		d.server.Detach(m.ID)
		if mp := d.maps[m.ID]; mp != nil {
			mp.Unmap()
			delete(d.maps, m.ID)
		}
		if d.detached++; d.detached%collectEvery == 0 {
			runtime.GC()
		}
		return d.host.Channel.Send(abi.Message{Type: abi.MsgDone, ID: m.ID})
	case abi.MsgStats:
		return d.host.Channel.Send(d.stats(m.ID))
	case abi.MsgShare:
		cfg, err := program.Share(m.Text)
		if err == nil {
			err = d.server.SetShare(m.ID, cfg)
		}
		return d.host.Answer(m, err)
	case abi.MsgTest:
		return d.host.Test(m, d.server.Test)
	case abi.MsgInject:
		d.host.Inject(m.Text, d.server, d.maps, func(misbehave func()) {
			d.server.Step = func(p serve.Step) {
				if p == serve.StepTaken {
					misbehave()
				}
			}
		})
	}
	return nil
}

// stats answers with the counters of an attachment; those of 0 are the driver's own.
func (d *driver) stats(id uint64) abi.Message {
	answer := abi.Message{Type: abi.MsgStats, ID: id, Text: "{}"}
	var counters map[string]uint64
	if c, ok := d.server.Counters(id); ok {
		counters = c.Map()
		program.AddUses(counters, d.server.Uses(id))
	} else if id == 0 {
		counters = map[string]uint64{"cpuNs": uint64(d.server.Own())}
	}
	if b, err := json.Marshal(counters); err == nil && counters != nil {
		answer.Text = string(b)
	}
	return answer
}

func (d *driver) attach(m abi.Message) error {
	id, a := m.ID, m.Attach
	if a == nil {
		return errors.New("attach without an attachment")
	}
	if d.maps[id] != nil {
		return serve.ErrAttached
	}
	cfg, err := program.ShareOf(m.Text)
	if err != nil {
		return err
	}
	if d.state != nil {
		taken, err := d.server.TakeOver(d.state)
		d.state = nil
		d.host.TookOver(taken, 0, err)
	}
	mp, c, err := mapClient(id, a)
	if err != nil {
		return err
	}
	c.Share = cfg
	if err := d.server.Attach(c); err != nil {
		mp.Unmap()
		return err
	}
	d.maps[id] = mp
	return nil
}
