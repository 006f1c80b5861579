package daemon

import (
	"net/netip"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/personalities/linux/agent"
)

// foreignDisk describes a disk to a Linux VM's process.
func (d *Daemon) foreignDisk(ref api.DiskRef) (hv.ForeignDisk, error) {
	none := hv.ForeignDisk{}
	dr, err := d.driver(ref.Driver)
	if err != nil {
		return none, err
	}
	dev, err := dr.device(ref.Disk)
	if err != nil {
		return none, err
	}
	switch {
	case !dr.rec.Config.Socket:
		return none, api.Errorf(api.Invalid, "driver %s offers its disks to native VMs only; make it with grailctl driver create … --socket to use it in a Linux VM", ref.Driver)
	case ref.ReadOnly && !dev.ReadOnly:
		return none, api.Errorf(api.Invalid, "disk %s/%s can be written by all clients of its socket; make the driver with --disk %s=PATH:ro", ref.Driver, ref.Disk, ref.Disk)
	}
	return hv.ForeignDisk{ID: ref.Disk, Socket: d.portalSocket(ref.Driver, ref.Disk)}, nil
}

// sameID refuses two disks that a Linux VM could not tell apart.
func sameID(id string) error {
	return api.Errorf(api.Invalid, "two disks of the VM have the ID %s, by which it finds them; give one of them another", id)
}

// foreignNIC describes a network card to a Linux VM's process.
func (d *Daemon) foreignNIC(ref api.NetRef) (hv.ForeignNIC, error) {
	dr, p, err := d.port(ref)
	if err == nil {
		err = dr.checkPort(p.Name)
	}
	return hv.ForeignNIC{Socket: d.portalSocket(ref.Driver, ref.Port), MAC: p.MAC, Queues: p.Queues}, err
}

// port finds a port of a net driver.
func (d *Daemon) port(ref api.NetRef) (*driver, api.Port, error) {
	dr, err := d.driver(ref.Driver)
	if err != nil {
		return nil, api.Port{}, err
	}
	p, err := dr.portOf(ref.Port)
	return dr, p, err
}

// guestNetwork is what the agent of a Linux VM is told about its network; nil if it has none.
func (d *Daemon) guestNetwork(cfg api.VMConfig) (*agent.Network, error) {
	if len(cfg.Nets) == 0 {
		return nil, nil
	}
	routed := false // the first card with a way out has the default route
	n := &agent.Network{Hostname: cfg.Name, Search: []string{vswitch.DefaultDomain}}
	for _, ref := range cfg.Nets {
		dr, p, err := d.port(ref)
		if err != nil {
			return nil, err
		}
		n.DNS = append(n.DNS, p.Address.Masked().Addr().Next().String())
		card := agent.Interface{MAC: p.MAC, Addresses: []netip.Prefix{p.Address}}
		if out := port(&dr.rec.Config, &p).Gateway; !routed && out.IsValid() {
			card.Gateway, routed = out, true
		}
		n.Interfaces = append(n.Interfaces, card)
	}
	return n, nil
}
