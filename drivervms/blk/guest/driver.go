package main

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

// driver joins the server with the grail system calls. It runs on one goroutine.
type driver struct {
	server *serve.Server
	ch     *guest.Channel
	status *guest.Status
	maps   map[uint64]*mapping
	// detached counts the attachments that have ended.
	detached int
	inject   string // misbehave so in the next round

	requests, bytes uint64 // as last written to the status page
}

// collectEvery is how many attachments end between two runs of the collector; each leaves some 50 KiB behind.
const collectEvery = 64

// loop serves for ever. Errors: the control channel is gone, waiting fails.
func (d *driver) loop() error {
	for {
		wake, err := d.server.Wait(-1)
		if err != nil {
			return err
		}
		if wake == ring.WakeWatch {
			m, err := d.ch.Receive()
			if errors.Is(err, guest.ErrChannelClosed) {
				return err
			}
			if err != nil {
				fmt.Println("blk:", err)
				continue
			}
			if err := d.handle(m); err != nil {
				return err
			}
		}
		d.server.Round()
		d.report()
	}
}

// report writes the status page and tells of clients that broke the rules.
func (d *driver) report() {
	d.status.Beat()
	if r, b := d.server.Requests, d.server.Bytes; r != d.requests {
		d.status.Count(r-d.requests, b-d.bytes)
		d.requests, d.bytes = r, b
	}
	for _, dead := range d.server.Deaths {
		fmt.Printf("blk: attachment %d is no longer served: %s\n", dead.ID, dead.Reason)
		if err := d.ch.Send(abi.Message{Type: abi.MsgDead, ID: dead.ID, Text: dead.Reason}); err != nil {
			fmt.Println("blk:", err)
		}
	}
	d.server.Deaths = d.server.Deaths[:0]
}

// handle does what the host asks for.
func (d *driver) handle(m abi.Message) error {
	switch m.Type {
	case abi.MsgAttach:
		answer := abi.Message{Type: abi.MsgDone, ID: m.ID}
		if err := d.attach(m.ID, m.Attach); err != nil {
			answer.Text = err.Error()
		}
		return d.ch.Send(answer)
	case abi.MsgDetach:
		d.server.Detach(m.ID)
		if mp := d.maps[m.ID]; mp != nil {
			mp.unmap()
			delete(d.maps, m.ID)
		}
		if d.detached++; d.detached%collectEvery == 0 {
			runtime.GC()
		}
		return d.ch.Send(abi.Message{Type: abi.MsgDone, ID: m.ID})
	case abi.MsgInject:
		switch m.Text {
		case "fault", "hang":
			fmt.Println("blk: told to misbehave:", m.Text)
			d.server.Step = func(p serve.Step) {
				if p == serve.StepTaken {
					misbehave(m.Text)
				}
			}
			// With requests in hand the damage is greatest; without any it happens here.
			if d.server.Round() == 0 {
				misbehave(m.Text)
			}
		}
	}
	return nil
}

func (d *driver) attach(id uint64, a *abi.Attach) error {
	if a == nil {
		return errors.New("attach without an attachment")
	}
	if d.maps[id] != nil {
		return serve.ErrAttached
	}
	mp, c, err := mapClient(id, a)
	if err != nil {
		return err
	}
	if err := d.server.Attach(c); err != nil {
		mp.unmap()
		return err
	}
	d.maps[id] = mp
	return nil
}
