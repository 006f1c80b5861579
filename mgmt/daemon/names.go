package daemon

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/api"
)

const (
	// namesPause is how long a net driver that did not take its names is left alone.
	namesPause = time.Second
	// namesTries is how often it may be silent until it is taken for stalled, although it beats and nothing waits in its rings: each time it had
	// hv.AskTimeout.
	namesTries = 4
)

// renamed has the net drivers of the ports learn which VMs are plugged into them now.
func (d *Daemon) renamed(refs []api.NetRef) {
	for _, ref := range refs {
		if dr, err := d.driver(ref.Driver); err == nil {
			dr.rename()
		}
	}
}

// rename has the driver learn the names of its VMs, soon.
func (dr *driver) rename() {
	select {
	case dr.naming <- struct{}{}:
	default: // it is about to
	}
}

// keepNames tells a net driver the names of the VMs that are plugged into it, whenever they change and whenever its switch is a new one, until the
// driver ends.
func (dr *driver) keepNames() {
	var told *driverInstance
	var tables map[uint16]string // what told has
	var again <-chan time.Time
	silent := 0
	for {
		select {
		case <-dr.naming:
		case <-again:
		case <-dr.stop:
			return
		case <-dr.d.closing:
			return
		}
		again = nil
		dr.mu.Lock()
		inst, ready := dr.inst, dr.state == api.Ready
		dr.mu.Unlock()
		if !ready {
			continue // it is called again when it is
		}
		if inst != told {
			told, tables, silent = inst, map[uint16]string{}, 0
		}
		fresh := inst.launched.After(dr.d.started) // else the last graild has told it names
		for tenant, text := range dr.nameTables() {
			if tables[tenant] == text || tables[tenant] == "" && fresh && text == noNames(tenant) {
				continue
			}
			complaint, err := inst.ask(abi.Message{Type: abi.MsgNames, ID: uint64(tenant), Text: text})
			if err == nil {
				tables[tenant], silent = text, 0 // also when it was refused: it would be again
			}
			if complaint != "" {
				dr.d.log.Error("names", "driver", dr.name(), "tenant", tenant, "error", complaint)
			}
			if err != nil && !inst.gone() {
				dr.d.log.Warn("names", "driver", dr.name(), "tenant", tenant, "error", err)
				again = time.After(namesPause)
				if silent++; silent == namesTries {
					inst.declareStalled("it answered no question", time.Now().Add(-namesTries*hv.AskTimeout))
				}
			}
		}
	}
}

// noNames is the table of a tenant without names, which every switch starts with.
func noNames(tenant uint16) string { return fmt.Sprintf(`{"tenant":%d,"names":{}}`, tenant) }

// nameTables returns the table of names of each tenant that the driver has a port for: the VMs that run, each with the address of
// its first port there.
func (dr *driver) nameTables() map[uint16]string {
	tables := map[uint16]vswitch.Names{}
	ports := map[string]api.Port{}
	for _, p := range dr.rec.Config.Ports {
		ports[p.Name] = p
		tables[p.Tenant] = vswitch.Names{Tenant: p.Tenant, Names: map[string]netip.Addr{}}
	}
	for _, v := range dr.d.running() {
		for _, ref := range v.Nets {
			p, ok := ports[ref.Port]
			if !ok || ref.Driver != dr.name() {
				continue
			}
			if names := tables[p.Tenant].Names; !names[v.Name].IsValid() {
				names[v.Name] = p.Address.Addr()
			}
		}
	}
	texts := map[uint16]string{}
	for tenant, n := range tables {
		b, err := json.Marshal(n)
		if err != nil {
			panic(err) // strings and addresses can always be written
		}
		texts[tenant] = string(b)
	}
	return texts
}

// running returns the configurations of the VMs that run.
func (d *Daemon) running() (list []api.VMConfig) {
	d.mu.Lock()
	vms := slices.Collect(maps.Values(d.vms))
	d.mu.Unlock()
	for _, v := range vms {
		v.mu.Lock()
		if v.inst != nil {
			list = append(list, v.rec.Config)
		}
		v.mu.Unlock()
	}
	return list
}
