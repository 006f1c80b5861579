package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/api"
)

// DriverStats asks the driver's present instance what it counted. What belongs to one port, whose queues may be attachments of their own, is
// one entry.
func (d *Daemon) DriverStats(name string) (s api.DriverStats, err error) {
	dr, err := d.driver(name)
	if err != nil {
		return s, err
	}
	defer func() {
		if errors.Is(err, hv.ErrClosed) {
			err = api.Errorf(api.Busy, "driver %s died and is being replaced; try again when it is ready", name)
		}
	}()
	dr.mu.Lock()
	inst, state, clients := dr.inst, dr.state, dr.clientList()
	s = api.DriverStats{Name: name, Type: dr.rec.Config.Type, Generation: dr.rec.Generation, Started: dr.rec.Started, Time: time.Now(), Clients: []api.ClientStats{}}
	dr.mu.Unlock()
	if state != api.Ready {
		return s, api.Errorf(api.Busy, "driver %s is %s and counts nothing now; try again when it is ready", name, state)
	}
	s.Requests, s.Bytes = inst.requests(), read64(inst.status, abi.StatusBytes)
	s.Disks = dr.view().Disks
	plugged := map[string]string{} // VMs by port
	for _, v := range d.running() {
		for _, ref := range v.Nets {
			if ref.Driver == name {
				plugged[ref.Port] = v.Name
			}
		}
	}
	seen := map[string]bool{}
	for _, c := range clients {
		b := c.binding(inst)
		port := c.att.Client + " " + c.att.Disk
		if !b.Attached || c.net && seen[port] {
			continue
		}
		seen[port] = true
		one := api.ClientStats{ID: c.att.ID, Client: c.att.Client, Disk: c.att.Disk}
		if vm := plugged[c.att.Disk]; vm != "" && c.net {
			one.Client = vm // a Linux VM's end is the portal's client
		}
		if one.Counters, err = inst.counters(c.att.ID); err != nil {
			return s, fmt.Errorf("driver %s: %w", name, err)
		}
		s.Clients = append(s.Clients, one)
	}
	if s.Uplink, err = inst.counters(0); err != nil {
		return s, fmt.Errorf("driver %s: %w", name, err)
	}
	s.OwnCPUNs = s.Uplink["cpuNs"]
	delete(s.Uplink, "cpuNs")
	if !slices.ContainsFunc(slices.Collect(maps.Values(s.Uplink)), func(n uint64) bool { return n > 0 }) {
		s.Uplink = nil // there is none
	}
	return s, nil
}

// counters asks for the counters of one attachment; 0 is the uplink.
func (i *driverInstance) counters(id uint64) (map[string]uint64, error) {
	text, err := i.ask(abi.Message{Type: abi.MsgStats, ID: id})
	if err != nil {
		return nil, err
	}
	c := map[string]uint64{}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return nil, fmt.Errorf("the driver's counters are no numbers: %w", err)
	}
	return c, nil
}
