package daemon

import (
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/engine"
	"github.com/grailos/grail/mgmt/linuximage"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/personalities/linux/agent"
	"github.com/grailos/grail/personalities/native"
)

// machine is a run of a personality VM that is about to start.
type machine struct {
	launch *hv.Launch
	notes  []string
	grants []*grant // its disks and ports, if it is native
	files  []*os.File
}

// clients returns the client's ends of its disks and ports.
func (m *machine) clients() []*client {
	var list []*client
	for _, k := range m.grants {
		list = append(list, k.client)
	}
	return list
}

// close gives up what was only needed for the start.
func (m *machine) close() {
	for _, f := range m.files {
		f.Close()
	}
}

// nativeMachine prepares a native VM with the files of a handover, which stay the caller's.
func (d *Daemon) nativeMachine(cfg api.VMConfig, files map[api.Role]*os.File) (*machine, error) {
	if files[api.RoleProgram] == nil {
		return nil, api.Errorf(api.Invalid, "no program was handed over")
	}
	vmm, err := place.Program("grailvm")
	if err != nil {
		return nil, err
	}
	chosen, kvm, why, err := engine.Choose(cfg.Engine)
	if err != nil {
		return nil, err
	}
	m := &machine{launch: hv.NewLaunch(vmm, hv.Personality, cfg.Name)}
	if kvm != nil {
		m.files = append(m.files, kvm)
	}
	if why != "" {
		m.notes = append(m.notes, why)
	}
	if m.grants, err = d.grantsFor(cfg); err != nil {
		m.close()
		return nil, err
	}
	l := m.launch
	l.Spec.Engine = chosen
	l.Spec.KVM = l.Add(kvm)
	l.Spec.Program = l.Add(files[api.RoleProgram])
	l.Spec.Files = l.Add(files[api.RoleFiles])
	l.Spec.Argv = append([]string{cfg.Program}, cfg.Args...)
	l.Spec.Env = native.Env(cfg.Env...)
	l.Spec.Dir = cfg.Dir
	l.Spec.MemoryBytes = cfg.MemoryBytes
	for _, k := range m.grants {
		k.addTo(l)
	}
	return m, nil
}

// grantsFor makes a native VM's ends of its disks and ports.
func (d *Daemon) grantsFor(cfg api.VMConfig) (grants []*grant, err error) {
	defer func() {
		if err != nil {
			for _, k := range grants {
				k.client.close()
			}
		}
	}()
	names := capNames(cfg.Disks, func(r api.DiskRef) (driver, disk string) { return r.Driver, r.Disk })
	for i, ref := range cfg.Disks {
		k, err := d.diskGrant(cfg.Name, ref, names[i])
		if err != nil {
			return grants, err
		}
		grants = append(grants, k)
	}
	names = capNames(cfg.Nets, func(r api.NetRef) (driver, port string) { return r.Driver, r.Port })
	for i, ref := range cfg.Nets {
		k, err := d.portGrant(cfg.Name, ref, names[i])
		if err != nil {
			return grants, err
		}
		grants = append(grants, k)
	}
	return grants, nil
}

// linuxMachine prepares a Linux VM. Its disks are reached through the vhost-user sockets of their drivers: QEMU is a client of the
// portal, and the portal's attachment is the driver's client.
func (d *Daemon) linuxMachine(cfg api.VMConfig, generation int) (*machine, error) {
	vmm, err := place.Program("graillinux")
	if err != nil {
		return nil, err
	}
	arch := cfg.Arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	program, pack := "qemu-system-x86_64", "qemu-system-x86"
	if arch == "arm64" {
		program, pack = "qemu-system-aarch64", "qemu-system-arm"
	}
	emulator, err := exec.LookPath(program)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "a Linux VM for %s needs %s, which is not here; install the package %s", arch, program, pack)
	}
	image, err := linuximage.Open(d.dirs.Images(), arch)
	if err != nil {
		return nil, err
	}
	f := &hv.Foreign{Arch: arch, CPUs: max(1, int(math.Ceil(cfg.CPU))), QEMU: emulator, Kernel: image.Kernel, Initrds: image.Initrds,
		Dir: filepath.Join(d.dirs.Run, "qemu", cfg.Name), TTY: cfg.TTY}
	if cfg.CPU == 0 {
		f.CPUs = min(2, runtime.NumCPU())
	}
	if err := os.MkdirAll(filepath.Dir(f.Dir), 0o711); err != nil {
		return nil, err
	}
	var told agent.Config
	disks := cfg.Disks
	if cfg.Root != nil {
		disks = append([]api.DiskRef{*cfg.Root}, disks...)
		// What is only read gets a layer in memory, so that a system can work on it.
		told.Root = &agent.Disk{Serial: cfg.Root.Disk, ReadOnly: cfg.Root.ReadOnly, Overlay: cfg.Root.ReadOnly}
	}
	for _, ref := range disks {
		dr, err := d.driver(ref.Driver)
		if err != nil {
			return nil, err
		}
		dev, err := dr.device(ref.Disk)
		if err != nil {
			return nil, err
		}
		switch {
		case !dr.rec.Config.Socket:
			return nil, api.Errorf(api.Invalid, "driver %s offers its disks to native VMs only; make it with grailctl driver create … --socket to use it in a Linux VM", ref.Driver)
		case ref.ReadOnly && !dev.ReadOnly:
			return nil, api.Errorf(api.Invalid, "disk %s/%s can be written by all clients of its socket; make the driver with --disk %s=PATH:ro", ref.Driver, ref.Disk, ref.Disk)
		}
		if slices.ContainsFunc(f.Disks, func(k hv.ForeignDisk) bool { return k.ID == ref.Disk }) {
			return nil, api.Errorf(api.Invalid, "two disks of the VM have the ID %s, by which it finds them; give one of them another", ref.Disk)
		}
		f.Disks = append(f.Disks, hv.ForeignDisk{ID: ref.Disk, Socket: d.portalSocket(ref.Driver, ref.Disk)})
	}
	for _, ref := range cfg.Nets {
		dr, err := d.driver(ref.Driver)
		if err != nil {
			return nil, err
		}
		p, err := dr.portOf(ref.Port)
		if err == nil {
			err = dr.checkPort(p.Name)
		}
		if err != nil {
			return nil, err
		}
		f.NICs = append(f.NICs, hv.ForeignNIC{Socket: d.portalSocket(ref.Driver, ref.Port), MAC: p.MAC})
		if told.Network == nil {
			told.Network = &agent.Network{Hostname: cfg.Name, Search: []string{vswitch.DefaultDomain}}
		}
		told.Network.DNS = append(told.Network.DNS, p.Address.Masked().Addr().Next().String())
		told.Network.Interfaces = append(told.Network.Interfaces, agent.Interface{MAC: p.MAC, Addresses: []netip.Prefix{p.Address}})
	}
	config, err := linuximage.Config(filepath.Join(d.dirs.VM(cfg.Name), "config.cpio"), &told)
	if err != nil {
		return nil, err
	}
	f.Initrds = append(f.Initrds, config)
	m := &machine{launch: hv.NewLaunch(vmm, hv.Personality, cfg.Name)}
	l := m.launch
	l.Spec.Engine, l.Spec.Foreign, l.Spec.MemoryBytes = hv.EngineQEMU, f, cfg.MemoryBytes
	if cfg.Program != "" {
		l.Spec.Argv = append([]string{cfg.Program}, cfg.Args...)
	}
	l.Spec.Env, l.Spec.Dir = cfg.Env, cfg.Dir
	return m, nil
}
