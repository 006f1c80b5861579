package daemon

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

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
	l.Spec.MemoryBytes, l.Spec.ReservedBytes, l.Spec.MaxThreads = cfg.MemoryBytes, uint64(cfg.Share.Memory.Reserved), int(cfg.Share.Threads)
	l.Spec.RealTime = cfg.Share.CPU.RealTime != nil
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
	f := &hv.Foreign{Arch: arch, CPUs: max(1, int(math.Ceil(max(cfg.CPU, float64(cfg.Share.CPU.Guarantee)/1000)))), QEMU: emulator, Kernel: image.Kernel, Initrds: image.Initrds,
		Dir: filepath.Join(d.dirs.Run, "qemu", cfg.Name), TTY: cfg.TTY, User: cfg.User, BootMs: cfg.BootMs}
	if cfg.CPU == 0 {
		f.CPUs = max(f.CPUs, min(2, runtime.NumCPU()))
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
		k, err := d.foreignDisk(ref)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(f.Disks, func(o hv.ForeignDisk) bool { return o.ID == k.ID }) {
			return nil, sameID(k.ID)
		}
		f.Disks = append(f.Disks, k)
	}
	for _, ref := range cfg.Nets {
		n, err := d.foreignNIC(ref)
		if err != nil {
			return nil, err
		}
		f.NICs = append(f.NICs, n)
	}
	if told.Network, err = d.guestNetwork(cfg); err != nil {
		return nil, err
	}
	config, err := linuximage.Config(filepath.Join(d.dirs.VM(cfg.Name), "config.cpio"), &told)
	if err != nil {
		return nil, err
	}
	f.Initrds = append(f.Initrds, config)
	m := &machine{launch: hv.NewLaunch(vmm, hv.Personality, cfg.Name)}
	l := m.launch
	l.Spec.Engine, l.Spec.Foreign = hv.EngineQEMU, f
	l.Spec.MemoryBytes, l.Spec.ReservedBytes = cfg.MemoryBytes, uint64(cfg.Share.Memory.Reserved)
	if cfg.Program != "" {
		l.Spec.Argv = append([]string{cfg.Program}, cfg.Args...)
	}
	l.Spec.Env, l.Spec.Dir = cfg.Env, cfg.Dir
	return m, nil
}
