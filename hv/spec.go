package hv

import "github.com/grailos/grail/hv/abi"

// Kind is a VM's role.
type Kind string

// The roles.
const (
	Driver      Kind = "driver"
	Personality Kind = "personality"
)

// Engine names what executes a VM's code.
type Engine string

// The engines. The first two run native guests, the last one guests that bring a kernel.
const (
	EngineKVM     Engine = "kvm"     // in guest user mode of a hardware-isolated VM
	EngineProcess Engine = "process" // as a jailed host process: weaker isolation, no /dev/kvm needed
	EngineQEMU    Engine = "qemu"    // in a jailed QEMU
)

// SpecFD is the descriptor on which grailvm finds its Spec, as JSON in a sealed memfd.
const SpecFD = 3

// Spec says how to run one VM. Descriptor fields are numbers in the new grailvm process; -1 means none.
type Spec struct {
	Name        string   `json:"name"`
	Kind        Kind     `json:"kind"`
	Engine      Engine   `json:"engine"`
	Program     int      `json:"program"` // a static ELF
	Argv        []string `json:"argv"`
	Env         []string `json:"env"`
	Dir         string   `json:"dir,omitempty"` // where the guest starts, in its own file system; empty: /
	MemoryBytes uint64   `json:"memoryBytes"`   // guest memory, a multiple of 2 MiB
	// ReservedBytes of it have host memory from the start on, for as long as the VM runs (engines kvm and qemu).
	ReservedBytes uint64 `json:"reservedBytes,omitempty"`
	MaxThreads    int    `json:"maxThreads"` // guest threads at once; 0: DefaultMaxThreads
	RealTime      bool   `json:"realTime"`   // a thread of the guest is to meet deadlines; see Status.Leader
	Files         int    `json:"files"`      // uncompressed tar archive, the guest's read-only root; -1: empty
	KVM           int    `json:"kvm"`        // /dev/kvm, for EngineKVM
	Stdin         int    `json:"stdin"`
	Stdout        int    `json:"stdout"`
	Stderr        int    `json:"stderr"`
	Log           [2]int `json:"log"` // two files used in turn for a bounded console log; -1: none
	// Console is the way to a console driver, in place of Log; nil: there is none.
	Console *ConsoleRing `json:"console,omitempty"`
	Control int          `json:"control"` // a listening SOCK_SEQPACKET socket
	Report  int          `json:"report"`  // where the final Report is written, as JSON
	// HostStatus is a 4 KiB memfd in which a driver's grailvm keeps, at offset 0, the number of SysDevIO,
	// pread, pwrite and fdatasync calls on devices that the host is performing now: an aligned
	// little-endian uint64, written atomically. At HostFaults + i*HostFaultBytes there are two more for the i-th CapDevice: how many of
	// its SysDevIO requests the host's device failed, and the Linux errno of the last one. The guest never sees it. -1: none.
	HostStatus int       `json:"hostStatus"`
	Caps       []CapSpec `json:"caps"`
	// Attachments are the client's ends of this VM's disks. grailvm keeps their descriptors so that a
	// new graild can learn them with OpAttachments; the guest sees them through Caps. In a driver's Spec
	// they are descriptors that the next graild needs (status pages, locked backing files), with an
	// empty Driver. Whatever stands here, grailvm keeps it and gives it back; it never looks inside.
	Attachments []Attachment `json:"attachments"`
	// Foreign is there for EngineQEMU alone, where Program, Files, MaxThreads and Caps are not used.
	Foreign *Foreign `json:"foreign,omitempty"`
}

// Where HostStatus counts what devices failed to do.
const (
	HostFaults     = 64
	HostFaultBytes = 16
)

// ConsoleRing is the producer's end of a ring/logring, in which a console driver finds what the guest prints.
type ConsoleRing struct {
	Memory int    `json:"memory"`
	Size   uint64 `json:"size"` // bytes
	Kick   int    `json:"kick"` // the driver's doorbell
}

// Foreign is a machine for a guest that brings its own kernel. Paths are the host's.
type Foreign struct {
	Arch    string        `json:"arch"` // amd64 or arm64
	CPUs    int           `json:"cpus"`
	QEMU    string        `json:"qemu"`
	Kernel  string        `json:"kernel"`
	Initrds []string      `json:"initrds"`
	Dir     string        `json:"dir"` // for the engine's own files
	Disks   []ForeignDisk `json:"disks,omitempty"`
	NICs    []ForeignNIC  `json:"nics,omitempty"`
	TTY     bool          `json:"tty,omitempty"`    // Argv gets a terminal, and Stdin is one in raw mode
	User    string        `json:"user,omitempty"`   // who runs Argv, as the guest names it; empty: root
	BootMs  int64         `json:"bootMs,omitempty"` // how long the guest may take until its agent answers; 0: 5 minutes
}

// ForeignDisk is a disk of a driver VM, reached through the vhost-user socket of its portal.
type ForeignDisk struct {
	ID     string `json:"id"` // of the disk, which is its serial number in the guest
	Socket string `json:"socket"`
}

// ForeignNIC is a port of a net driver VM, reached through the vhost-user socket of its portal.
type ForeignNIC struct {
	Socket string `json:"socket"`
	MAC    string `json:"mac"`
	Queues int    `json:"queues,omitempty"` // pairs; 0: 1
}

// DefaultMaxThreads bounds the threads of a guest that asks for no other number.
const DefaultMaxThreads = 256

// CapSpec is one entry of the guest's initial capability table. In the guest it gets the lowest free
// descriptor number from 3 on, in order.
type CapSpec struct {
	Kind   abi.CapKind `json:"kind"`
	Name   string      `json:"name"`
	Index  uint32      `json:"index"`
	Rights uint32      `json:"rights"`
	FD     int         `json:"fd"`     // in grailvm
	Size   uint64      `json:"size"`   // bytes
	Config []byte      `json:"config"` // up to 64 bytes
}

// MaxConfig bounds Attachment.Config in bytes.
const MaxConfig = 4096

// Attachment is one client's binding to a driver VM: its memory, its queues' doorbells and the in-flight
// log. Descriptor fields index the descriptors that come with the message which holds the Attachment, or
// number descriptors of grailvm when it stands in a Spec.
type Attachment struct {
	ID       uint64       `json:"id"`     // unique in one graild store
	Client   string       `json:"client"` // name of the VM or of the vhost-user socket
	Driver   string       `json:"driver"` // name of the driver VM
	Disk     string       `json:"disk"`   // or the network port
	ReadOnly bool         `json:"readonly"`
	Config   string       `json:"config,omitempty"` // for the driver alone, in its own JSON: Text of its abi.MsgAttach; at most MaxConfig bytes
	Features uint64       `json:"features"`
	Regions  []AttachMem  `json:"regions"`
	Queues   []AttachRing `json:"queues"`
	Log      int          `json:"log"`
	LogSize  uint64       `json:"logSize"`
}

// AttachMem is one region of an Attachment; see abi.Region.
type AttachMem struct {
	FD     int    `json:"fd"`
	Base   uint64 `json:"base"`
	Size   uint64 `json:"size"`
	Offset uint64 `json:"offset"`
	// ReadOnly keeps the driver from writing to it. FD should be a descriptor for reading alone.
	ReadOnly bool `json:"readonly,omitempty"`
}

// AttachRing is one queue of an Attachment; see abi.Queue.
type AttachRing struct {
	Index     uint16 `json:"index"`
	Size      uint16 `json:"size"`
	LastAvail uint16 `json:"lastAvail"`
	Kick      int    `json:"kick"`
	Call      int    `json:"call"`
	Desc      uint64 `json:"desc"`
	Avail     uint64 `json:"avail"`
	Used      uint64 `json:"used"`
}

// Descriptors calls f on every descriptor field of a, to renumber them: between a Spec's numbers and a
// message's indices. Fields that hold -1 are left alone.
func (a *Attachment) Descriptors(f func(*int)) {
	g := func(fd *int) {
		if *fd >= 0 {
			f(fd)
		}
	}
	for i := range a.Regions {
		g(&a.Regions[i].FD)
	}
	for i := range a.Queues {
		g(&a.Queues[i].Kick)
		g(&a.Queues[i].Call)
	}
	g(&a.Log)
}
