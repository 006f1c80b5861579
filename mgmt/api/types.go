package api

import (
	"net/netip"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/tenant"
)

// Version answers GET version.
type Version struct {
	Version string    `json:"version"`
	API     int       `json:"api"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	State   string    `json:"state"` // state directory
	Log     string    `json:"log"`   // graild's log file
	Build   string    `json:"build"` // identity of the program file that it runs; see place.Build
}

// APIVersion changes when old clients could misunderstand new answers.
const APIVersion = 1

// State is where a VM or a driver stands.
type State string

// The states of personality VMs and drivers.
const (
	Created    State = "created"    // never started
	Starting   State = "starting"   // its process exists, its program does not answer yet
	Running    State = "running"    // its program runs
	Exited     State = "exited"     // it ran and ended
	Ready      State = "ready"      // driver: serving
	Recovering State = "recovering" // driver: the next instance is on its way
	BackOff    State = "back-off"   // driver: it crashed too often; the next attempt waits
	CrashLoop  State = "crash-loop" // driver: it kept crashing; no further attempt until it is resumed
)

// Live reports whether a process of the VM may exist in this state.
func (s State) Live() bool { return s == Starting || s == Running }

// DiskRef names a disk of a driver VM that a personality uses.
type DiskRef struct {
	Driver   string `json:"driver"`
	Disk     string `json:"disk"`
	ReadOnly bool   `json:"readonly,omitempty"`
}

// NetRef names a port of a net driver that a personality VM is plugged into.
type NetRef struct {
	Driver string `json:"driver"`
	Port   string `json:"port"`
}

// VMConfig says what a personality VM is.
type VMConfig struct {
	Name        string    `json:"name"`
	Personality string    `json:"personality"`      // "native" or "linux"
	Engine      hv.Engine `json:"engine,omitempty"` // empty: the best that works here
	CPU         float64   `json:"cpu,omitempty"`    // cap in cores; 0: none
	MemoryBytes uint64    `json:"memoryBytes"`
	MemoryLimit uint64    `json:"memoryLimit,omitempty"` // how much of it may be used; 0: all
	Disks       []DiskRef `json:"disks,omitempty"`
	Files       string    `json:"files,omitempty"` // absolute path of the directory given with --files
	Program     string    `json:"program"`         // absolute path on the host; personality linux: a command in the guest, empty for none
	Args        []string  `json:"args,omitempty"`
	Env         []string  `json:"env,omitempty"`     // NAME=value, beyond the default environment
	Dir         string    `json:"dir,omitempty"`     // where the guest starts, in its own file system; empty: /
	Remove      bool      `json:"remove,omitempty"`  // forget the VM when it has ended
	Arch        string    `json:"arch,omitempty"`    // personality linux: amd64 or arm64; empty: the host's
	TTY         bool      `json:"tty,omitempty"`     // personality linux: Program gets a terminal
	Nets        []NetRef  `json:"nets,omitempty"`    // ports that it is plugged into
	Publish     []Publish `json:"publish,omitempty"` // ports of the VM that the host offers
	Root        *DiskRef  `json:"root,omitempty"`    // personality linux: the disk with its system; nil: the default system, in memory
	Image       *Image    `json:"image,omitempty"`   // personality linux: the image from which graild makes Root
	User        string    `json:"user,omitempty"`    // personality linux: who runs Program, as the guest names it, USER or USER:GROUP; empty: root
	BootMs      int64     `json:"bootMs,omitempty"`  // personality linux: how long it may take until its agent answers; 0: 5 minutes

	Tenant string       `json:"tenant,omitempty"` // path of the tenant that it belongs to; empty: none but the host
	Share  tenant.Share `json:"share,omitzero"`   // what it asks for while it runs, beyond CPU and MemoryBytes, which are its bounds
}

// Image is a root disk that grailctl image build has made.
type Image struct {
	Name     string `json:"name"`
	Digest   string `json:"digest"`             // "sha256:" and 64 hexadecimal digits, of the disk
	Path     string `json:"path"`               // of the disk, absolute
	Writable bool   `json:"writable,omitempty"` // the VM gets a copy of its own; otherwise what it writes is in memory
}

// The personalities.
const (
	Native = "native"
	Linux  = "linux"
)

// VM is a personality VM as graild sees it.
type VM struct {
	VMConfig
	State      State      `json:"state"`
	Generation int        `json:"generation"` // counts starts
	EngineUsed hv.Engine  `json:"engineUsed,omitempty"`
	PID        int        `json:"pid,omitempty"`
	Created    time.Time  `json:"created"`
	Started    time.Time  `json:"started,omitzero"`
	Ended      time.Time  `json:"ended,omitzero"`
	Report     *hv.Report `json:"report,omitempty"` // of the last run
	Status     *hv.Status `json:"status,omitempty"` // of the present run; only where one VM was asked for
	Notes      []string   `json:"notes,omitempty"`  // what is weaker than asked for, and why
	Logs       []string   `json:"logs"`             // console log files, oldest first
}

// CreateVM is the body of POST vms.
type CreateVM struct {
	Config VMConfig `json:"config"`
	Start  *StartVM `json:"start,omitempty"` // also start it
}

// StartVM is the body of POST vms/{name}/start. The ticket stands for the descriptors of a Handover.
type StartVM struct {
	Ticket string `json:"ticket"`
	Wait   bool   `json:"wait,omitempty"` // answer only once the program runs, or failed to
}

// StopVM is the body of POST vms/{name}/stop.
type StopVM struct {
	GraceMs int `json:"graceMs"` // time between SIGTERM and the end by force; 0: force at once
}

// Device names a disk or a network port that is attached to a VM: exactly one of the two is set. It is the body of POST vms/{name}/attach and
// vms/{name}/detach.
type Device struct {
	Disk *DiskRef `json:"disk,omitempty"`
	Net  *NetRef  `json:"net,omitempty"`
}

// Attached answers POST vms/{name}/attach.
type Attached struct {
	Device
	Guest string `json:"guest,omitempty"` // what a guest that runs calls it, such as vdb or eth1
}

// SignalVM is the body of POST vms/{name}/signal.
type SignalVM struct {
	Signal int `json:"signal"`
}

// Disk is a disk of a driver VM.
type Disk struct {
	ID       string `json:"id"`
	Path     string `json:"path"`
	ReadOnly bool   `json:"readonly,omitempty"`
	Bytes    uint64 `json:"bytes,omitempty"`
	Socket   string `json:"socket,omitempty"` // vhost-user socket

	Errors    uint64 `json:"errors,omitempty"`    // requests that the host's file or device failed, since graild started
	LastError string `json:"lastError,omitempty"` // of the last one
}

// Port is a port of a net driver's switch: one client at a time can be plugged into it.
type Port struct {
	Name     string       `json:"name"` // also its name in the DNS of its tenant
	Tenant   uint16       `json:"tenant"`
	Queues   int          `json:"queues,omitempty"`   // pairs of queues that its client is offered; 0: 1
	Unpinned bool         `json:"unpinned,omitempty"` // its client may use other addresses than its own, as a bridge or a router does
	MAC      string       `json:"mac"`
	Address  netip.Prefix `json:"address"`
	Socket   string       `json:"socket,omitempty"` // vhost-user socket
}

// DriverConfig says what a driver VM is.
type DriverConfig struct {
	Name        string    `json:"name"`
	Type        string    `json:"type"` // "blk", "net" or "console"
	Engine      hv.Engine `json:"engine,omitempty"`
	MemoryBytes uint64    `json:"memoryBytes"`
	Disks       []Disk    `json:"disks"`
	Ports       []Port    `json:"ports,omitempty"`
	Subnet      string    `json:"subnet,omitempty"` // of the ports' addresses; type net
	Uplink      string    `json:"uplink,omitempty"` // the switch's way out: "user", "user:loopback", or empty for none; type net
	Socket      bool      `json:"socket,omitempty"`
	Unsealed    bool      `json:"unsealed,omitempty"` // admit vhost-user clients whose memory can shrink: see hv.PortalSpec.AllowUnsealed
	NoSpare     bool      `json:"noSpare,omitempty"`  // Spares is 0: as stores and clients from before Spares have it
	Image       string    `json:"image,omitempty"`    // the image that it serves to VMs; graild made it for them, and removes it after the last

	// How its death is found out and dealt with: see SetDriver.
	HeartbeatMs int    `json:"heartbeatMs"`
	DeadlineMs  int    `json:"deadlineMs"`
	Spares      *int   `json:"spares,omitempty"`
	Policy      Policy `json:"policy,omitempty"`
	FailAfterMs int    `json:"failAfterMs,omitempty"`

	Auto    bool           `json:"auto,omitempty"`    // graild made it by itself
	Console *ConsoleConfig `json:"console,omitempty"` // type console; nil: the defaults

	Tenant string       `json:"tenant,omitempty"` // path of the tenant that it belongs to; empty: none but the host
	Share  tenant.Share `json:"share,omitzero"`   // its reservation, beyond its memory
}

// Driver is a driver VM as graild sees it.
type Driver struct {
	DriverConfig
	State        State        `json:"state"`
	Message      string       `json:"message,omitempty"`      // why it is not ready
	Generation   int          `json:"generation"`             // counts instances that were to serve
	Spare        bool         `json:"spare"`                  // the next instance is there already
	SparesUp     int          `json:"sparesUp"`               // how many of them
	SpareCrashes int          `json:"spareCrashes,omitempty"` // spares that died; not counted in Crashes
	Failing      bool         `json:"failing,omitempty"`      // its clients get I/O errors until it serves again
	EngineUsed   hv.Engine    `json:"engineUsed,omitempty"`
	PID          int          `json:"pid,omitempty"`
	Created      time.Time    `json:"created"`
	Started      time.Time    `json:"started,omitzero"` // of the present instance
	Clients      []Binding    `json:"clients"`
	Crashes      int          `json:"crashes"`
	NAT          *NAT         `json:"nat,omitempty"`  // of the uplink
	Kept         *DriverState `json:"kept,omitempty"` // for the next instance, as of the last look
	Status       *hv.Status   `json:"status,omitempty"`
	Notes        []string     `json:"notes,omitempty"`
	Logs         []string     `json:"logs"`
	Program      string       `json:"program,omitempty"` // SHA-256 of the program that it was upgraded to; empty: the installed one
}

// UpgradeDriver is the body of POST drivers/{name}/upgrade. The ticket stands for the program.
type UpgradeDriver struct {
	Ticket     string `json:"ticket,omitempty"`
	Installed  bool   `json:"installed,omitempty"`  // the installed program of the driver's type, and no ticket
	DeadlineMs int    `json:"deadlineMs,omitempty"` // for the new program to be ready and to test itself; 0: 20,000
}

// Upgrade answers UpgradeDriver.
type Upgrade struct {
	Driver   string  `json:"driver"`
	From     string  `json:"from,omitempty"` // SHA-256 of the program before; empty: the installed one
	To       string  `json:"to,omitempty"`   // SHA-256 of the program now; empty: the installed one
	SwitchMs float64 `json:"switchMs"`       // from the start of the drain until the new instance served every client
}

// Binding is one client's attachment to a driver VM.
type Binding struct {
	ID       uint64 `json:"id"`
	Name     string `json:"name"` // of the personality VM, or the vhost-user socket
	Disk     string `json:"disk"`
	ReadOnly bool   `json:"readonly,omitempty"`
	Attached bool   `json:"attached"` // the present instance serves it
	Queues   int    `json:"queues"`
	Error    string `json:"error,omitempty"`
}

// DriverStats is what the present instance of a driver counted.
type DriverStats struct {
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	Generation int               `json:"generation"` // the instance
	Started    time.Time         `json:"started"`    // of the instance; the clients' counters go on from one to the next
	Time       time.Time         `json:"time"`       // of the counters
	Requests   uint64            `json:"requests"`   // or frames, of all clients since Started
	Bytes      uint64            `json:"bytes"`
	Clients    []ClientStats     `json:"clients"`          // those that are attached
	Uplink     map[string]uint64 `json:"uplink,omitempty"` // of a net driver, as a port's
	Disks      []Disk            `json:"disks,omitempty"`  // with what each failed to do
	OwnCPUNs   uint64            `json:"ownCpuNs"`         // processor time that is charged to no client, ns
}

// ClientStats is what one client of a block driver did since it was attached, or what was done at one port of a net driver since that was made. A disk has the counters reads, readBytes, writes, writeBytes,
// flushes, discards and errors. A port has txPackets, txBytes (taken from the client), rxPackets, rxBytes (delivered to it) and drop.REASON for
// each reason for which frames were dropped; the reasons are vswitch.Reason's.
//
// cpuNs is the processor time of the driver's VM that is charged to the client, its own process included, in ns; ringN.cpuNs, ringN.ops and ringN.bytes are
// those of each ring. Of a port, ring 2k receives and 2k+1 sends; what is forwarded is charged to the sender, what comes from the uplink to the receiver.
// These begin at 0 with each instance.
type ClientStats struct {
	ID       uint64            `json:"id"`
	Client   string            `json:"client"`
	Disk     string            `json:"disk"` // or the port
	Counters map[string]uint64 `json:"counters"`
}

// CreateDriver is the body of POST drivers.
type CreateDriver struct {
	Config DriverConfig `json:"config"`
}

// CrashDriver is the body of POST drivers/{name}/crash.
type CrashDriver struct {
	How string `json:"how"` // kill, fault, hang or stall
}

// Crash records one end of a driver instance that nobody asked for, and the recovery from it.
type Crash struct {
	ID         uint64   `json:"id"`
	Driver     string   `json:"driver"`
	Generation int      `json:"generation"`        // the instance that died
	Launch     int      `json:"launch"`            // number of its process; spares count as well
	Spare      bool     `json:"spare"`             // a spare took its place
	OfSpare    bool     `json:"ofSpare,omitempty"` // it was a spare that died: nothing waited for it
	Cause      hv.Cause `json:"cause"`
	Message    string   `json:"message,omitempty"`
	Injected   string   `json:"injected,omitempty"` // how, when it was crashed on request: an Inject's Kind or a CrashDriver's How
	// InjectedSeed is that Inject's Seed.
	InjectedSeed uint64 `json:"injectedSeed,omitempty"`
	Program      string `json:"program,omitempty"` // SHA-256 of the program that it was upgraded to; empty: the installed one
	Clients      int    `json:"clients"`
	// The steps of the recovery; zero where unknown. Crashed is the last sign of life for a hang.
	Crashed  time.Time `json:"crashed,omitzero"`
	Detected time.Time `json:"detected,omitzero"`
	Stopped  time.Time `json:"stopped,omitzero"` // nothing that it began can land any more
	Launched time.Time `json:"launched,omitzero"`
	Ready    time.Time `json:"ready,omitzero"` // the next instance takes clients
	Attached time.Time `json:"attached,omitzero"`
	First    time.Time `json:"first,omitzero"` // first request completed by the next instance
	// RecoverMs is First, or Attached when no request was waiting, minus Crashed.
	RecoverMs float64      `json:"recoverMs,omitempty"`
	State     *DriverState `json:"state,omitempty"` // that the next instance was given
	Rings     []Ring       `json:"rings,omitempty"` // of its clients, when it had stopped
	Report    *hv.Report   `json:"report,omitempty"`
	Trace     *Trace       `json:"trace,omitempty"`
}

// Ring is the state of a client's queue.
type Ring struct {
	Client   string `json:"client"`
	Disk     string `json:"disk"` // or port
	Queue    int    `json:"queue"`
	Size     int    `json:"size"`
	Avail    uint16 `json:"avail"`    // index of the client's next request
	Used     uint16 `json:"used"`     // index of the driver's next completion
	Inflight int    `json:"inflight"` // requests taken and not completed, by the log; -1: there is no log
	// Requests are the oldest of these, at most MaxRequests.
	Requests []Request `json:"requests,omitempty"`
}

// MaxRequests bounds the requests in a Ring.
const MaxRequests = 16

// Request is one that a driver had taken and not completed, as its client's memory describes it.
type Request struct {
	Head   uint16 `json:"head"`             // its first descriptor
	What   string `json:"what"`             // read, write, flush, or the number of another type (virtio 1.2 §5.2.6); of a port: frame
	Offset uint64 `json:"offset,omitempty"` // on the disk, of a read or a write, in bytes
	Bytes  uint64 `json:"bytes"`            // of data, or of room for a frame
}

// Trace is a decoded hv.Fault.
type Trace struct {
	What        string  `json:"what"`        // the fault in words
	Instruction string  `json:"instruction"` // bytes and assembly, or why it could not be decoded
	Stack       []Frame `json:"stack"`       // innermost first
}

// Frame is one call of a Trace.
type Frame struct {
	PC   uint64 `json:"pc"`
	Func string `json:"func,omitempty"`
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
}
