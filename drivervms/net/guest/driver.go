package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

// driver joins the switch with the grail system calls. It runs on one goroutine.
type driver struct {
	sw     *vswitch.Switch
	ch     *guest.Channel
	status *guest.Status
	maps   map[uint64]*mapping
	groups map[vswitch.MAC]*group
	of     map[uint64]*group // by attachment

	events  uint64 // attachments that came and went, and messages: they leave memory behind
	garbage uint64 // events and requests to services at the last collection

	packets, bytes uint64 // as last written to the status page
}

// collectEvery is how many events and requests to services, each of which leaves some KiB behind, come between two runs of the
// collector.
const collectEvery = 1024

func newDriver(c vswitch.Config, ch *guest.Channel, status *guest.Status) *driver {
	d := &driver{
		sw: vswitch.New(c), ch: ch, status: status,
		maps: map[uint64]*mapping{}, groups: map[vswitch.MAC]*group{}, of: map[uint64]*group{},
	}
	d.sw.Watch(ch.FD())
	return d
}

// loop serves for ever. Errors: the control channel is gone, waiting fails.
func (d *driver) loop() error {
	for {
		wake, err := d.sw.Wait(-1)
		if err != nil {
			return err
		}
		if wake == ring.WakeWatch {
			m, err := d.ch.Receive()
			if errors.Is(err, guest.ErrChannelClosed) {
				return err
			}
			if err != nil {
				fmt.Println("net:", err)
				continue
			}
			if err := d.handle(m); err != nil {
				return err
			}
		}
		d.sw.Round()
		d.report()
		d.collect()
	}
}

// report writes the status page and tells of clients that broke the rules.
func (d *driver) report() {
	d.status.Beat()
	if p, b := d.sw.Packets, d.sw.Bytes; p != d.packets {
		d.status.Count(p-d.packets, b-d.bytes)
		d.packets, d.bytes = p, b
	}
	for _, dead := range d.sw.Deaths {
		fmt.Printf("net: port %d is no longer served: %s\n", dead.ID, dead.Reason)
		for _, g := range d.groups {
			if g.id != dead.ID {
				continue
			}
			g.dead = true
			for id := range g.members() {
				if err := d.ch.Send(abi.Message{Type: abi.MsgDead, ID: id, Text: dead.Reason}); err != nil {
					fmt.Println("net:", err)
				}
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
		if err := d.attach(m); err != nil {
			answer.Text = err.Error()
		}
	case abi.MsgDetach:
		d.part(m.ID)
		if mp := d.maps[m.ID]; mp != nil {
			mp.unmap()
			delete(d.maps, m.ID)
		}
	case abi.MsgNames:
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
	case abi.MsgInject:
		d.inject(m.Text)
		return nil
	default:
		return nil
	}
	return d.ch.Send(answer)
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
		if b, err := json.Marshal(c.Map()); err == nil {
			m.Text = string(b)
		}
	}
	return m
}

func (d *driver) inject(how string) {
	if how != "fault" && how != "hang" {
		return
	}
	fmt.Println("net: told to misbehave:", how)
	d.sw.Step = func(p vswitch.Step) {
		if p == vswitch.StepTaken {
			misbehave(how)
		}
	}
	// With frames in hand the damage is greatest; without any it happens here.
	if d.sw.Round() == 0 {
		misbehave(how)
	}
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
	mp, queues, err := mapQueues(a)
	if err != nil {
		return err
	}
	if err := d.join(m.ID, cfg, a.Features, queues); err != nil {
		mp.unmap()
		return err
	}
	d.maps[m.ID] = mp
	return nil
}
