package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
)

// PortName is the name of the virtio-serial port that the agent looks for.
const PortName = "org.grail.agent"

// Version is the protocol's. Both sides say theirs in the hello; they must be equal.
const Version = 1

// Hello begins a connection. The guest answers with the host's Nonce and fills in the rest.
type Hello struct {
	Nonce   string
	Version int
	Agent   string `json:",omitempty"` // the program's version
	Kernel  string `json:",omitempty"` // as uname -r prints it
	Arch    string `json:",omitempty"` // Go's name of it
	// BootMs is for how long the guest's kernel had been running when its agent was ready, in milliseconds.
	BootMs int64 `json:",omitempty"`
	// Failure is what went wrong when the guest was set up as its Config says. The agent answers all the same.
	Failure string `json:",omitempty"`
}

// Size is a terminal's, in characters.
type Size struct{ Rows, Columns uint16 }

// Process says how to run a program in the guest.
type Process struct {
	// Argv is the program and its arguments. A name without a slash is looked for in PATH.
	Argv []string
	// Env is added to a small standard environment, and to that of the guest's Config.
	Env []string `json:",omitempty"`
	Dir string   `json:",omitempty"` // empty: "/"
	// User is a name or number, of a user, or of a user and a group with ":" between. Empty: root.
	User string `json:",omitempty"`
}

// Exec is the content of a FrameExec.
type Exec struct {
	Process
	TTY  bool // give it a terminal; its output is all FrameStdout then
	Size Size
	// Stdin says that frames of that type follow. Otherwise it reads nothing.
	Stdin bool
}

// Exit is how a program ended.
type Exit struct {
	Code   int    // 0 to 255; 128+n after signal n; 127 and 126 if it was not found or could not be run
	Signal int    `json:",omitempty"` // that ended it
	Error  string `json:",omitempty"` // why it did not start
}

// Call asks the guest to do something; Method is one of the constants below.
type Call struct {
	Method string
	Params json.RawMessage `json:",omitempty"`
}

// Reply answers a call.
type Reply struct {
	Error  string          `json:",omitempty"`
	Result json.RawMessage `json:",omitempty"`
}

// The methods of calls, with what they take and return.
const (
	MethodNetwork  = "network"  // Network, nothing
	MethodTime     = "time"     // Time, nothing
	MethodStatus   = "status"   // nothing, Status
	MethodShutdown = "shutdown" // Shutdown, nothing; answered before it begins
	MethodWait     = "wait"     // nothing, Exit: how the main program ended, when it has
	MethodAwait    = "await"    // Device, Found: when the device is there
	MethodRelease  = "release"  // Device, nothing: when the kernel has let go of the device
)

// Time is the host's clock.
type Time struct{ UnixNano int64 }

// Mode is what follows the end of a guest.
type Mode string

// The modes of a shutdown.
const (
	PowerOff Mode = "poweroff"
	Reboot   Mode = "reboot"
	Halt     Mode = "halt"
)

// Shutdown ends the guest in good order: SIGTERM, SIGKILL after the grace period, unmounting.
type Shutdown struct {
	Mode    Mode
	GraceMs int64 // 0: DefaultGrace
}

// DefaultGrace is how long programs have between SIGTERM and SIGKILL.
const DefaultGrace = 5 * time.Second

// Status is how the guest is.
type Status struct {
	UptimeMs      int64
	Kernel        string
	Hostname      string
	Load1         float64 // average number of runnable tasks in the last minute
	MemoryKiB     uint64
	MemoryFreeKiB uint64 // free, or in use only by caches of files
	Processes     int
	Execs         int   // programs that run by Exec now
	Main          *Exit `json:",omitempty"` // of the main program, when it has ended
	MainRunning   bool
	RootReadOnly  bool
	RootFreeKiB   uint64
	RootTotalKiB  uint64
	UnixNano      int64 // the guest's clock
	OrphansReaped uint64
}

// Network is the set-up of a guest's interfaces and names.
type Network struct {
	Hostname   string      `json:",omitempty"`
	DNS        []string    `json:",omitempty"` // addresses of servers
	Search     []string    `json:",omitempty"` // domains
	Interfaces []Interface `json:",omitempty"`
	// Hosts are further names, by address, for /etc/hosts.
	Hosts map[string][]string `json:",omitempty"`
}

// Interface is the set-up of one of a guest's interfaces.
type Interface struct {
	// MAC selects the interface by its hardware address; otherwise Name does. With neither, it is the first beside lo.
	MAC       string         `json:",omitempty"`
	Name      string         `json:",omitempty"`
	Addresses []netip.Prefix `json:",omitempty"` // replace those that it has
	Gateway   netip.Addr     // of the default route; zero: none
	Routes    []Route        `json:",omitempty"`
	MTU       int            `json:",omitempty"` // bytes; 0: as it is
}

// Route leads to a network.
type Route struct {
	To  netip.Prefix
	Via netip.Addr // zero: on the link
}

// Encode returns v as JSON for a payload. Errors: larger than MaxPayload.
func Encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err == nil && len(b) > MaxPayload {
		err = fmt.Errorf("agent: a message of %d bytes; at most %d can be sent", len(b), MaxPayload)
	}
	return b, err
}

// Decode takes v from a payload. Unknown fields are ignored. Errors: ErrProtocol.
func Decode(p []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(p))
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %s", ErrProtocol, Clean(err.Error()))
	}
	if d.More() {
		return fmt.Errorf("%w: something behind a message", ErrProtocol)
	}
	return nil
}

// maxText bounds text from a peer that becomes part of an error, in bytes.
const maxText = 1 << 10

// Clean returns a peer's text with nothing in it that a terminal would obey, and bounded.
func Clean(s string) string {
	s = s[:min(len(s), maxText)]
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
