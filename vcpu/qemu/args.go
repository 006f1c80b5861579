package qemu

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// firstFD is the number in QEMU of the first file that is passed to it.
const firstFD = 3

// runDir is where, in QEMU's root, the sockets of the VM's devices are.
const runDir = "/run"

// plan is a Config with its choices made and its files numbered.
type plan struct {
	*Config
	machine Machine
	accel   Accel
	tscKHz  uint64
	files   []*os.File // descriptor firstFD and following
	fds     fdNumbers
}

// fdNumbers are descriptors in QEMU.
type fdNumbers struct{ qmp, kernel, initrd, ram int }

// add passes f to QEMU and returns its number there.
func (p *plan) add(f *os.File) int {
	for i, have := range p.files {
		if have == f {
			return firstFD + i
		}
	}
	p.files = append(p.files, f)
	return firstFD + len(p.files) - 1
}

// choose returns the machine type for a Config that has none.
func choose(arch Arch, accel Accel, tscKHz uint64) Machine {
	switch {
	case arch == ARM64:
		return Virt
	case accel == TCG && tscKHz == 0:
		return Q35
	}
	return MicroVM
}

// cmdline returns the kernel's command line with what the machine needs.
func (p *plan) cmdline() string {
	words := p.Cmdline
	add := func(key, value string) {
		for w := range strings.FieldsSeq(words) {
			if strings.HasPrefix(w, key+"=") {
				return
			}
		}
		if words != "" {
			words += " "
		}
		words += key + "=" + value
	}
	if p.machine == MicroVM {
		add("pcie_ports", "native")
		if p.accel == TCG && p.tscKHz != 0 {
			add("tsc_early_khz", strconv.FormatUint(p.tscKHz, 10))
		}
	}
	return words
}

// comma escapes a value in QEMU's option syntax.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// chardev returns the options of a character device.
func (p *plan) chardev(id string, s Stream) string {
	opt := ""
	switch {
	case s.Listen != nil:
		opt = fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", id, p.add(s.Listen))
	case s.Conn != nil:
		opt = fmt.Sprintf("socket,id=%s,fd=%d", id, p.add(s.Conn))
	default:
		opt = "null,id=" + id
	}
	if s.Log != nil {
		opt += fmt.Sprintf(",logfile=%s,logappend=on", fdPath(p.add(s.Log)))
	}
	return opt
}

// argv returns QEMU's command line without its name.
func (p *plan) argv() []string {
	var args []string
	opt := func(a ...string) { args = append(args, a...) }
	opt("-name", p.Name, "-nodefaults", "-no-user-config", "-display", "none", "-S")

	// -runas makes the very calls that elevateprivileges=deny forbids. Once it has, QEMU has no capability, and by
	// no_new_privs no way to get one, so that these calls are of no use to it.
	elevate := "deny"
	if !p.Jail.Off && p.ownUser() {
		elevate = "allow"
		opt("-runas", fmt.Sprintf("%d:%d", p.Jail.UID, p.Jail.GID))
	}
	opt("-sandbox", "on,obsolete=deny,elevateprivileges="+elevate+",spawn=deny,resourcecontrol=deny")
	if !p.Jail.Off {
		opt("-chroot", jailEmpty)
	}

	opt("-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", p.fds.qmp), "-mon", "chardev=qmp,mode=control")
	opt("-action", "reboot=shutdown,shutdown=pause,panic=pause")

	cpu := "max"
	switch {
	case p.accel == KVM:
		cpu = "host"
	case p.Arch == ARM64:
		// max would emulate pointer authentication with QARMA, four times slower.
		cpu = "neoverse-n1"
	}
	accel := string(p.accel)
	if p.accel == TCG {
		accel += fmt.Sprintf(",tb-size=%d", TranslationBytes>>20)
	}
	opt("-accel", accel, "-cpu", cpu, "-smp", strconv.Itoa(p.CPUs), "-m", fmt.Sprintf("size=%dM", p.Memory>>20))
	opt("-object", fmt.Sprintf("memory-backend-file,id=ram0,mem-path=%s,size=%d,share=on", fdPath(p.fds.ram), p.Memory))
	switch p.machine {
	case MicroVM:
		serial := "off"
		if p.Console.Kind == SerialConsole {
			serial = "on"
		}
		opt("-machine", "microvm,memory-backend=ram0,pcie=on,acpi=on,rtc=on,usb=off,isa-serial="+serial)
	case Q35:
		opt("-machine", "q35,memory-backend=ram0,usb=off,vmport=off,smbus=off,sata=off")
	case Virt:
		gic := "3"
		if p.accel == KVM {
			gic = "host"
		}
		opt("-machine", "virt,memory-backend=ram0,gic-version="+gic)
	}
	opt("-kernel", fdPath(p.fds.kernel))
	if p.fds.initrd != 0 {
		opt("-initrd", fdPath(p.fds.initrd))
	}
	if line := p.cmdline(); line != "" {
		opt("-append", line)
	}

	opt("-device", "pvpanic-pci", "-device", "virtio-rng-pci,rng=rng0", "-object", "rng-builtin,id=rng0")
	opt("-device", "virtio-balloon-pci,id=balloon0,disable-legacy=on,free-page-reporting="+onOff(!p.KeepFree))
	if p.Console.Kind != NoConsole {
		opt("-chardev", p.chardev("console", p.Console.Stream))
	}
	if p.Console.Kind == SerialConsole {
		opt("-serial", "chardev:console")
	}
	if p.Console.Kind == VirtioConsole || len(p.Channels) > 0 {
		opt("-device", fmt.Sprintf("virtio-serial-pci,id=vserial,max_ports=%d", MaxChannels+2))
	}
	if p.Console.Kind == VirtioConsole {
		opt("-device", "virtconsole,chardev=console,nr=0")
	}
	for i, ch := range p.Channels {
		id := fmt.Sprintf("channel%d", i)
		opt("-chardev", p.chardev(id, ch.Stream))
		opt("-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s,nr=%d", id, ch.Name, i+1))
	}

	for i := range p.slots() {
		opt("-device", fmt.Sprintf("pcie-root-port,id=%s,chassis=%d,slot=%d", slotName(i), i+1, i+1))
	}
	slot := 0
	for _, d := range p.Disks {
		opt("-chardev", fmt.Sprintf("socket,id=%s,path=%s,reconnect=1", chardevID(d.ID), comma(p.socketPath(d.ID))))
		opt("-device", pairs(d.device(slotName(slot))))
		slot++
	}
	for _, n := range p.NICs {
		opt("-chardev", fmt.Sprintf("socket,id=%s,path=%s,reconnect=1", chardevID(n.ID), comma(p.socketPath(n.ID))))
		opt("-netdev", pairs(n.netdev()))
		opt("-device", pairs(n.device(slotName(slot), p.accel)))
		slot++
	}
	return append(args, p.Extra...)
}

// slots is how many root ports the machine has.
func (c *Config) slots() int { return len(c.Disks) + len(c.NICs) + c.FreeSlots }

// socketPath returns the path at which QEMU finds a device's socket.
func (c *Config) socketPath(id string) string { return socketPath(c.Dir, c.Jail.Off, id) }

func socketPath(dir string, unjailed bool, id string) string {
	if unjailed {
		return dir + runDir + "/" + id
	}
	return runDir + "/" + id
}

func slotName(i int) string      { return "slot" + strconv.Itoa(i) }
func chardevID(id string) string { return "c-" + id }
func netdevID(id string) string  { return "n-" + id }
func onOff(b bool) string        { return map[bool]string{true: "on", false: "off"}[b] }
func deviceID(id string) string  { return "d-" + id }
func ourDevice(qemuID string) string {
	if id, ok := strings.CutPrefix(qemuID, "d-"); ok {
		return id
	}
	return ""
}

// property is one option of a device; its value is a string, an int or a bool.
type property struct {
	key   string
	value any
}

// pairs writes properties in QEMU's option syntax; the first value stands alone.
func pairs(props []property) string {
	var b strings.Builder
	for i, p := range props {
		v := p.value
		if on, ok := v.(bool); ok {
			v = onOff(on)
		}
		if i > 0 {
			b.WriteByte(',')
			b.WriteString(p.key)
			b.WriteByte('=')
		}
		b.WriteString(comma(fmt.Sprint(v)))
	}
	return b.String()
}

// object makes a QMP argument of properties.
func object(props []property) map[string]any {
	m := make(map[string]any, len(props))
	for _, p := range props {
		m[p.key] = p.value
	}
	return m
}

func (d *Disk) device(bus string) []property {
	return []property{{"driver", "vhost-user-blk-pci"}, {"id", deviceID(d.ID)}, {"bus", bus},
		{"chardev", chardevID(d.ID)}, {"num-queues", d.Queues}, {"queue-size", 256}, {"disable-legacy", "on"}}
}

func (n *NIC) netdev() []property {
	return []property{{"type", "vhost-user"}, {"id", netdevID(n.ID)}, {"chardev", chardevID(n.ID)}, {"queues", n.Queues}}
}

func (n *NIC) device(bus string, accel Accel) []property {
	props := []property{{"driver", "virtio-net-pci"}, {"id", deviceID(n.ID)}, {"bus", bus},
		{"netdev", netdevID(n.ID)}, {"mac", n.MAC}, {"disable-legacy", "on"}, {"romfile", ""}}
	if n.Queues > 1 {
		props = append(props, property{"mq", true})
	}
	switch {
	case accel == TCG:
		// Without irqfds, QEMU 7.2 follows a null pointer when a vhost-user-net device with MSI-X starts (in
		// msix_set_vector_notifiers): the card gets a plain interrupt.
		props = append(props, property{"vectors", 0})
	case n.Queues > 1:
		// One vector for each queue, one for configuration, one for control.
		props = append(props, property{"vectors", 2*n.Queues + 2})
	}
	if n.MTU != 0 {
		props = append(props, property{"host_mtu", n.MTU})
	}
	return props
}
