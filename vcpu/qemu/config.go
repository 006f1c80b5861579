package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"time"
)

// Arch is the architecture of a machine, as Go names it.
type Arch string

// The architectures.
const (
	AMD64 Arch = "amd64"
	ARM64 Arch = "arm64"
)

// Accel is how QEMU executes guest code.
type Accel string

// The accelerators.
const (
	Auto Accel = ""    // KVM where Probe finds a hardware one for the architecture, TCG otherwise
	KVM  Accel = "kvm" // the host's /dev/kvm
	TCG  Accel = "tcg" // translation
)

// TranslationBytes is how much memory QEMU may use for translated code, in bytes, beside some 40 MiB of its own. When it is full, QEMU begins anew; without
// a bound it takes up to 1 GiB (accel/tcg/region.c). Booting Linux fills some 60 MiB.
const TranslationBytes = 128 << 20

// Machine is a machine type of QEMU.
type Machine string

// The machine types; see the package's documentation.
const (
	Fastest Machine = ""
	MicroVM Machine = "microvm" // amd64
	Q35     Machine = "q35"     // amd64
	Virt    Machine = "virt"    // arm64
)

// Limits of a Config.
const (
	MinMemory   = 32 << 20 // bytes
	MaxMemory   = 1 << 40  // bytes
	MaxCPUs     = 64
	MaxQueues   = 16
	MaxDevices  = 24 // disks and network cards together, plugged at start or later
	MaxChannels = 16
	maxCmdline  = 2047 // of Linux on amd64 and arm64
	maxInitrd   = 2 << 30
)

// ErrConfig is wrapped by every error that says what is wrong with a Config, a Disk or a NIC.
var ErrConfig = errors.New("qemu: configuration")

// Config is a machine. Start does not keep any of its files: they are the caller's, and may be closed when
// Start has returned.
type Config struct {
	Name string // letters, digits, '.', '_' and '-', at most 64
	// Dir is the VM's directory, made if it does not exist, mode 0700: QMP socket, state, last words. One VM at a time uses
	// it. It must be on the file system of the vhost-user sockets, for which hard links are made in it.
	Dir     string
	Arch    Arch   // "": the host's
	Program string // QEMU; "": qemu-system-x86_64 or qemu-system-aarch64 in PATH
	Accel   Accel
	Machine Machine

	Kernel  string   // path of a bootable image
	Initrds []string // paths; loaded one behind the other
	// Cmdline is the kernel's command line. "pcie_ports=native" and "tsc_early_khz=" are added where the machine needs
	// them and Cmdline does not have them.
	Cmdline string
	CPUs    int   // 0: 1
	Memory  int64 // bytes, a multiple of 1 MiB
	// RAM holds the guest's memory: a memfd of at least Memory bytes, see NewRAM. Vhost-user back ends map it. nil:
	// one is made.
	RAM *os.File
	// KeepFree has the guest not report pages that it does not use, which are otherwise given back to the host.
	KeepFree bool

	Disks    []Disk
	NICs     []NIC
	Channels []Channel
	Console  Console
	// FreeSlots is how many disks and network cards more than those can be plugged later at the same time. 0: 4;
	// negative: none.
	FreeSlots int
	// Paused leaves the guest before its first instruction, until VM.Resume.
	Paused bool
	// Extra is appended to QEMU's command line. It is not checked.
	Extra []string

	Jail Jail
	// StartTimeout bounds the time until QEMU answers. 0: 20 seconds.
	StartTimeout time.Duration
}

// Disk is a virtio disk whose back end is a vhost-user-blk server. Its size, serial number and whether it is
// read-only are what the server says.
type Disk struct {
	ID     string `json:"id"`     // unique among the VM's devices; letters, digits, '_' and '-', at most 32, a letter first
	Socket string `json:"socket"` // path of the server's socket
	Queues int    `json:"queues"` // 0: 1
}

// NIC is a virtio network card whose back end is a vhost-user-net server.
type NIC struct {
	ID     string `json:"id"` // as Disk.ID
	Socket string `json:"socket"`
	MAC    string `json:"mac"`    // unicast
	Queues int    `json:"queues"` // pairs; 0: 1
	MTU    int    `json:"mtu"`    // told to the guest; 0: not
}

// Channel is a virtio-serial port, which a Linux guest finds as /dev/virtio-ports/NAME.
type Channel struct {
	Name string // such as "org.grail.agent"
	Stream
}

// ConsoleKind is the guest's console device.
type ConsoleKind string

// The consoles.
const (
	NoConsole     ConsoleKind = ""
	SerialConsole ConsoleKind = "serial" // ttyS0 on amd64, ttyAMA0 on arm64
	VirtioConsole ConsoleKind = "virtio" // hvc0; there once the guest has loaded virtio_console
)

// Console is the guest's console.
type Console struct {
	Kind ConsoleKind
	Stream
}

// Stream is the host's end of a character device.
type Stream struct {
	// Listen is a listening Unix stream socket. The first peer is connected, others wait. What the guest writes while
	// there is none is dropped (serial) or waits (virtio).
	Listen *os.File
	// Conn is a connected Unix stream socket. Listen and Conn exclude each other. When its peer closes it, the device
	// has no peer any more.
	Conn *os.File
	// Log takes a copy of what the guest writes: a regular file, opened again for appending, and bounded by
	// Jail.FileBytes; what is more is dropped. It may be used alone. A pipe that nobody reads would stop the machine.
	Log *os.File
}

// Jail says how QEMU is confined. The zero value is the strictest.
type Jail struct {
	// Launcher is the program that sets up the jail and becomes QEMU: one that calls JailMain. "": the running program.
	Launcher string
	// UID and GID are what QEMU runs as, if the caller is root. 0: 65534, nobody. Give each VM its own. If the
	// caller is not root, QEMU runs as the caller.
	UID, GID int
	// ReadOnly are the files and directories that QEMU may read before the guest starts. nil: where Linux distributions keep
	// libraries and QEMU's data; Program is added.
	ReadOnly []string
	// Off runs QEMU in the caller's namespaces, as the caller's user and with the caller's root; its system-call filter,
	// no new privileges and resource limits remain. For hosts that refuse new namespaces.
	Off bool
	// FileBytes bounds each file that QEMU writes. 0: 16 MiB.
	FileBytes int64
	// OpenFiles bounds QEMU's descriptors. 0: 1024.
	OpenFiles int
}

var (
	nameRE    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	idRE      = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,31}$`)
	channelRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
)

func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrConfig, fmt.Errorf(format, args...))
}

// check fills in defaults and says what is wrong.
func (c *Config) check() error {
	if !nameRE.MatchString(c.Name) {
		return wrong("name %q: expected up to 64 letters, digits, '.', '_', '-'", c.Name)
	}
	if c.Dir == "" || c.Kernel == "" {
		return wrong("Dir and Kernel are needed")
	}
	if c.Arch == "" {
		c.Arch = hostArch
	}
	switch {
	case c.Arch != AMD64 && c.Arch != ARM64:
		return wrong("architecture %q: expected amd64 or arm64", c.Arch)
	case c.Accel != Auto && c.Accel != KVM && c.Accel != TCG:
		return wrong("accelerator %q: expected kvm or tcg", c.Accel)
	case c.Accel == KVM && c.Arch != hostArch:
		return wrong("accelerator kvm runs %s guests here, not %s ones", hostArch, c.Arch)
	case c.Machine != Fastest && (c.Machine == Virt) != (c.Arch == ARM64):
		return wrong("machine %s is not one of %s", c.Machine, c.Arch)
	case c.Machine != Fastest && c.Machine != MicroVM && c.Machine != Q35 && c.Machine != Virt:
		return wrong("machine %q: expected microvm, q35 or virt", c.Machine)
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.CPUs < 1 || c.CPUs > MaxCPUs {
		return wrong("%d CPUs: expected 1 to %d", c.CPUs, MaxCPUs)
	}
	if c.Memory < MinMemory || c.Memory > MaxMemory || c.Memory%(1<<20) != 0 {
		return wrong("%d bytes of memory: expected 32 MiB to 1 TiB in whole MiB", c.Memory)
	}
	if len(c.Cmdline) > maxCmdline-64 || strings.ContainsAny(c.Cmdline, "\x00\n") {
		return wrong("kernel command line: expected one line of at most %d bytes", maxCmdline-64)
	}
	if c.FreeSlots == 0 {
		c.FreeSlots = 4
	}
	c.FreeSlots = max(c.FreeSlots, 0)
	if n := len(c.Disks) + len(c.NICs) + c.FreeSlots; n > MaxDevices {
		return wrong("%d disks, network cards and free slots: expected at most %d", n, MaxDevices)
	}
	ids := map[string]bool{}
	for i := range c.Disks {
		if err := c.Disks[i].check(); err != nil {
			return err
		}
		if ids[c.Disks[i].ID] {
			return wrong("two devices with the name %s", c.Disks[i].ID)
		}
		ids[c.Disks[i].ID] = true
	}
	for i := range c.NICs {
		if err := c.NICs[i].check(); err != nil {
			return err
		}
		if ids[c.NICs[i].ID] {
			return wrong("two devices with the name %s", c.NICs[i].ID)
		}
		ids[c.NICs[i].ID] = true
	}
	if len(c.Channels) > MaxChannels {
		return wrong("%d channels: expected at most %d", len(c.Channels), MaxChannels)
	}
	names := map[string]bool{}
	for _, ch := range c.Channels {
		if !channelRE.MatchString(ch.Name) || names[ch.Name] {
			return wrong("channel %q: expected different names of up to 64 letters, digits, '.', '_', '-'", ch.Name)
		}
		names[ch.Name] = true
		if err := ch.Stream.check("channel " + ch.Name); err != nil {
			return err
		}
	}
	switch c.Console.Kind {
	case NoConsole:
	case SerialConsole, VirtioConsole:
		if err := c.Console.Stream.check("console"); err != nil {
			return err
		}
	default:
		return wrong("console %q: expected serial or virtio", c.Console.Kind)
	}
	return c.Jail.check()
}

func (s Stream) check(what string) error {
	if s.Listen != nil && s.Conn != nil {
		return wrong("%s: both a listening and a connected socket", what)
	}
	return nil
}

func (j *Jail) check() error {
	if j.UID < 0 || j.GID < 0 || j.FileBytes < 0 || j.OpenFiles < 0 {
		return wrong("jail: negative number")
	}
	if j.UID == 0 {
		j.UID = 65534
	}
	if j.GID == 0 {
		j.GID = 65534
	}
	if j.FileBytes == 0 {
		j.FileBytes = 16 << 20
	}
	if j.OpenFiles == 0 {
		j.OpenFiles = 1024
	}
	if j.Launcher == "" {
		j.Launcher = "/proc/self/exe"
	}
	return nil
}

func (d *Disk) check() error {
	if !idRE.MatchString(d.ID) {
		return wrong("disk %q: expected up to 32 letters, digits, '_', '-', a letter first", d.ID)
	}
	if d.Queues == 0 {
		d.Queues = 1
	}
	if d.Queues < 1 || d.Queues > MaxQueues {
		return wrong("disk %s: %d queues: expected 1 to %d", d.ID, d.Queues, MaxQueues)
	}
	return checkSocket("disk "+d.ID, d.Socket)
}

func (n *NIC) check() error {
	if !idRE.MatchString(n.ID) {
		return wrong("network card %q: expected up to 32 letters, digits, '_', '-', a letter first", n.ID)
	}
	if n.Queues == 0 {
		n.Queues = 1
	}
	if n.Queues < 1 || n.Queues > MaxQueues {
		return wrong("network card %s: %d queues: expected 1 to %d", n.ID, n.Queues, MaxQueues)
	}
	if n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535) {
		return wrong("network card %s: MTU %d: expected 68 to 65535", n.ID, n.MTU)
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return wrong("network card %s: address %q: expected a unicast one such as 52:54:00:12:34:56", n.ID, n.MAC)
	}
	n.MAC = mac.String()
	return checkSocket("network card "+n.ID, n.Socket)
}

// checkSocket says what is wrong with a vhost-user server's socket. QEMU waits for a server that is not there, and
// with it the whole machine.
func checkSocket(what, path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return wrong("%s: %w", what, err)
	}
	if fi.Mode()&os.ModeSocket == 0 {
		return wrong("%s: %s is not a socket", what, path)
	}
	return nil
}
