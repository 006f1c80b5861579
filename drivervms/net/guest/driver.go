package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
)

// driver joins the switch with the grail system calls. It runs on one goroutine.
type driver struct {
	sw     *vswitch.Switch
	host   *program.Host
	maps   map[uint64]*program.Mapping
	groups map[vswitch.MAC]*group
	of     map[uint64]*group // by attachment
	state  []byte            // of a predecessor, until it is taken over

	events  uint64 // attachments that came and went, and messages: they leave memory behind
	garbage uint64 // events and requests to services at the last collection
}

// collectEvery is how many events and requests to services, each of which leaves some KiB behind, come between two runs of the
// collector.
const collectEvery = 1024

func newDriver(c vswitch.Config, h *program.Host) *driver {
	d := &driver{
		sw: vswitch.New(c), host: h, state: h.State,
		maps: map[uint64]*program.Mapping{}, groups: map[vswitch.MAC]*group{}, of: map[uint64]*group{},
	}
	d.sw.Watch(h.Channel.FD())
	return d
}

// loop serves for ever; see program.Host.Loop.
func (d *driver) loop() error {
	return d.host.Loop(d.sw, d.handle, func() {
		d.report()
		d.collect()
	})
}

// report writes the status page and tells of clients that broke the rules.
func (d *driver) report() {
	d.host.Served(d.sw.Packets, d.sw.Bytes)
	for _, dead := range d.sw.Deaths {
		d.host.Say("port %d is no longer served: %s", dead.ID, dead.Reason)
		for _, g := range d.groups {
			if g.id != dead.ID {
				continue
			}
			g.dead = true
			for id := range g.members() {
				d.host.Dead(id, dead.Reason)
			}
		}
	}
	d.sw.Deaths = d.sw.Deaths[:0]
}

// collect runs the collector now and then.
func (d *driver) collect() {
	if n := d.sw.Served + 16*d.events; n-d.garbage >= collectEvery {
		d.garbage = n
		runtime.GC()
	}
}

// handle does what the host asks for.
func (d *driver) handle(m abi.Message) error {
	d.events++
	answer := abi.Message{Type: abi.MsgDone, ID: m.ID}
	switch m.Type {
	case abi.MsgAttach:
		d.takeOver()
		if err := d.attach(m); err != nil {
			answer.Text = err.Error()
		}
	case abi.MsgDetach:
		d.part(m.ID)
		if mp := d.maps[m.ID]; mp != nil {
			mp.Unmap()
			delete(d.maps, m.ID)
		}
	case abi.MsgNames:
		d.takeOver()
		answer.Type = abi.MsgNames
		var n vswitch.Names
		err := json.Unmarshal([]byte(m.Text), &n)
		if err == nil {
			err = d.sw.SetNames(n.Tenant, n.Names)
		}
		if err != nil {
			answer.Text = err.Error()
		}
	case abi.MsgStats:
		answer = d.stats(m.ID)
	case abi.MsgShare:
		cfg, err := program.Share(m.Text)
		if err == nil {
			err = d.share(m.ID, cfg)
		}
		return d.host.Answer(m, err)
	case abi.MsgTest:
		return d.host.Test(m, d.sw.Test)
	case abi.MsgInject:
		d.inject(m.Text)
		return nil
	default:
		return nil
	}
	return d.host.Channel.Send(answer)
}

// takeOver goes on from what a predecessor has kept, once it is certain that there is none any more.
func (d *driver) takeOver() {
	if d.state == nil {
		return
	}
	taken, refused, err := d.sw.TakeOver(d.state)
	d.state = nil
	d.host.TookOver(taken, refused, err)
}

func (d *driver) stats(id uint64) abi.Message {
	asked := id
	c, ok := d.sw.UplinkCounters(), true
	if id != 0 {
		if g := d.of[id]; g != nil {
			id = g.id
		}
		c, ok = d.sw.Counters(id)
	}
	m := abi.Message{Type: abi.MsgStats, ID: asked, Text: "{}"}
	if ok {
		counters := c.Map()
		if asked == 0 {
			counters["cpuNs"] = uint64(d.sw.Own())
		} else {
			program.AddUses(counters, d.sw.Uses(id))
		}
		if b, err := json.Marshal(counters); err == nil {
			m.Text = string(b)
		}
	}
	return m
}

func (d *driver) inject(how string) {
	d.host.Inject(how, d.sw, d.maps, func(misbehave func()) {
		d.sw.Step = func(p vswitch.Step) {
			if p == vswitch.StepTaken {
				misbehave()
			}
		}
	})
}

func (d *driver) attach(m abi.Message) error {
	a := m.Attach
	if a == nil {
		return errors.New("attach without an attachment")
	}
	if d.maps[m.ID] != nil {
		return vswitch.ErrAttached
	}
	var cfg vswitch.PortConfig
	if err := json.Unmarshal([]byte(m.Text), &cfg); err != nil {
		return fmt.Errorf("port configuration: %w", err)
	}
	gets, err := program.ShareOf(m.Text)
	if err != nil {
		return err
	}
	mp, queues, err := mapQueues(a)
	if err != nil {
		return err
	}
	if err := d.join(m.ID, cfg, gets, a.Features, queues); err != nil {
		mp.Unmap()
		return err
	}
	d.maps[m.ID] = mp
	return nil
}
