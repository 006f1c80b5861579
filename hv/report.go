package hv

import "time"

// Cause says why a VM ended.
type Cause string

// The causes of a VM's end.
const (
	CauseExit     Cause = "exit"     // the guest ended itself; see Code
	CauseSignal   Cause = "signal"   // a signal that the guest did not handle; see Signal and Fault
	CauseStop     Cause = "stop"     // stopped on request
	CauseMemory   Cause = "memory"   // the guest used up its memory, or did not give back what it was asked for; see Message
	CauseEngine   Cause = "engine"   // the engine failed, or the guest made the vCPU fail; see Message
	CauseSetup    Cause = "setup"    // the VM never started; see Message
	CauseKilled   Cause = "killed"   // the VMM was killed; made up by graild, there is no Report
	CauseHang     Cause = "hang"     // the heartbeat stood still with work pending; made up by graild
	CauseProtocol Cause = "protocol" // it broke the rules of a ring; made up by graild
	CauseStall    Cause = "stall"    // requests stood still while it beat; made up by graild
)

// Report is the last word of a grailvm process.
type Report struct {
	Name    string    `json:"name"`
	Cause   Cause     `json:"cause"`
	Code    int       `json:"code"`             // the guest's exit code, for CauseExit
	Signal  int       `json:"signal,omitempty"` // Linux number, for CauseSignal
	Message string    `json:"message,omitempty"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
	// Fault is the last fault that the guest took, whether or not it handled it. If it took none and was stopped, it says where a
	// thread was that ran then, if one did (engine kvm); its Signal is 0.
	Fault   *Fault   `json:"fault,omitempty"`
	Console []string `json:"console,omitempty"` // the last lines of output, at most ConsoleTail
	// Said is the last line of output by which the runtime of a program, Go's or C++'s, began to say what it dies of: what it says then may be more than
	// ConsoleTail lines. It is the guest's own word.
	Said   string         `json:"said,omitempty"`
	Stats  Stats          `json:"stats"`
	Denied map[string]int `json:"denied,omitempty"` // system calls answered ENOSYS, by number or name
}

// ConsoleTail is how many console lines a Report keeps.
const ConsoleTail = 50

// Fault is a snapshot of a guest thread at a fault, with what is needed to decode it outside the jail.
type Fault struct {
	Taken   time.Time         `json:"taken,omitzero"` // engine kvm
	Thread  int               `json:"thread"`
	Vector  int               `json:"vector"` // x86 exception vector; -1 when unknown
	Error   uint64            `json:"error"`  // the exception's error code
	Address uint64            `json:"address"`
	Signal  int               `json:"signal"` // the Linux signal it became
	Regs    map[string]uint64 `json:"regs"`   // by lower-case name: rax … r15, rip, rflags, fs_base
	Code    []byte            `json:"code"`   // bytes at RIP
	Frames  []uint64          `json:"frames"` // return addresses found by the frame-pointer chain, innermost first
	Bias    uint64            `json:"bias"`   // load bias of a position-independent program
}

// Stats counts what a VM did.
type Stats struct {
	Exits       uint64 `json:"exits"`
	Syscalls    uint64 `json:"syscalls"`
	Faults      uint64 `json:"faults"`
	Threads     int    `json:"threads"` // now
	MemoryBytes uint64 `json:"memoryBytes"`
	MemoryUsed  uint64 `json:"memoryUsed"` // guest memory handed out, bytes
	// Memory is what is reserved of it and what was asked back.
	Memory      MemoryState `json:"memory,omitzero"`
	DevRequests uint64      `json:"devRequests"`
	DevBytes    uint64      `json:"devBytes"`
	// Calls counts the system calls served on engine kvm, by name: each one is an exit.
	Calls map[string]uint64 `json:"calls,omitempty"`
}
