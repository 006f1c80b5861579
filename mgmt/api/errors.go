package api

import (
	"errors"
	"fmt"
	"github.com/grailos/grail/hv"
)

// Kind classes an Error for programs.
type Kind string

// The kinds of error.
const (
	Invalid   Kind = "invalid"    // the request makes no sense
	NotFound  Kind = "not-found"  // no such VM, driver, disk
	Exists    Kind = "exists"     // the name is taken
	Busy      Kind = "busy"       // not in this state, or in use
	Refused   Kind = "refused"    // a reservation cannot be kept
	CannotRun Kind = "cannot-run" // the program or the engine does not run here
	Internal  Kind = "internal"   // graild or the host failed
)

// Error is a refused request: one line that says what was wrong, what was expected and what to do.
type Error struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"error"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Errorf returns an Error.
func Errorf(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...)}
}

// KindOf returns the kind of err, Internal when it has none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Exit codes of grailctl. A program that grailctl ran returns its own code, or 128 plus the number of the
// signal that ended it.
const (
	ExitOK        = 0
	ExitError     = 125 // grailctl or graild failed, or the command line is wrong
	ExitCannotRun = 126 // the program exists but cannot run as a guest
	ExitNotFound  = 127 // the program does not exist
	ExitSignal    = 128 // plus the signal's number
)

// Guest memory comes in units of MemoryUnit, and a personality VM needs MinMemory, in bytes.
const (
	MemoryUnit = 2 << 20
	MinMemory  = 16 << 20
)

// CheckMemory refuses a size of guest memory that cannot be.
func CheckMemory(bytes, least uint64) error {
	switch {
	case bytes < least:
		return Errorf(Invalid, "memory of %d bytes is too little; give at least %dM", bytes, least>>20)
	case bytes%MemoryUnit != 0:
		return Errorf(Invalid, "memory of %d bytes is no multiple of 2M; give a multiple, for instance %dM", bytes, (bytes/MemoryUnit+1)*(MemoryUnit>>20))
	}
	return nil
}

// MinLinuxMemory is what a Linux VM needs to boot, in bytes.
const MinLinuxMemory = 128 << 20

// CheckLinux refuses what a Linux VM cannot have.
func CheckLinux(c *VMConfig) error {
	if c.Engine != "" && c.Engine != hv.EngineQEMU {
		return Errorf(Invalid, "engine %s runs no Linux VMs; leave --engine out, or use qemu", c.Engine)
	}
	switch c.Arch {
	case "", "amd64", "arm64":
	default:
		return Errorf(Invalid, "there is no architecture %q; use amd64 or arm64", c.Arch)
	}
	if c.BootMs < 0 {
		return Errorf(Invalid, "a Linux VM cannot boot in %d ms", c.BootMs)
	}
	if c.Files != "" {
		return Errorf(Invalid, "a Linux VM has no file bundle; give it a disk, or copy files through grailctl exec")
	}
	return CheckMemory(c.MemoryBytes, MinLinuxMemory)
}

// Bounds of a CPU cap in cores. Below the lower one the kernel's quota has no room (mgmt/fence).
const (
	MinCPU = 0.01
	MaxCPU = 1024
)

// CheckCPU refuses a CPU cap that cannot be kept. 0 means none.
func CheckCPU(cores float64) error {
	if cores == 0 || cores >= MinCPU && cores <= MaxCPU {
		return nil
	}
	return Errorf(Invalid, "a CPU cap of %g cores cannot be kept; give %g to %d, or 0 for none", cores, MinCPU, MaxCPU)
}
