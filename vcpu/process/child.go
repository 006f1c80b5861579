//go:build linux && amd64

package process

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// hooked is set once ChildMain was called, without which a re-execution would run the caller's main again.
var hooked atomic.Bool

func isChild() bool { return len(os.Args) == 1 && os.Args[0] == childName }

// init keeps the main goroutine of a jail child on the process's first thread, which is the one that executes the guest.
func init() {
	if isChild() {
		runtime.LockOSThread()
	}
}

// ChildMain turns the process into the guest when Start re-executed it, and then never returns; otherwise it
// returns at once. Every program that calls Start or Probe calls it first thing in main (TestMain in a
// test), before it reads flags or opens anything.
func ChildMain() {
	hooked.Store(true)
	if !isChild() {
		return
	}
	err := child()
	// Before the filter this reaches the parent; after it only raw exits are made, in enter.
	fmt.Fprint(os.NewFile(childSocket, "parent"), err)
	os.Exit(127)
}

// child does the jail child's work, in the order that the privileges of each step demand. It returns only errors.
func child() error {
	// /proc/self names this process in whatever process namespace that /proc belongs to, and the directory
	// keeps working for the parent after both have lost /proc.
	proc, err := unix.Open("/proc/self", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening /proc/self: %w", err)
	}
	if err := unix.Sendmsg(childSocket, []byte(hello), unix.UnixRights(proc), nil, 0); err != nil {
		return err
	}
	spec, err := readSpec(os.NewFile(childSocket, "parent"))
	if err != nil {
		return fmt.Errorf("reading the specification: %w", err)
	}
	if spec.Jailed {
		if err := emptyRoot(); err != nil {
			return err
		}
	}
	if err := dropPrivileges(spec); err != nil {
		return err
	}
	if err := closeOnExec(); err != nil {
		return fmt.Errorf("closing descriptors: %w", err)
	}
	memory, err := setLimits(spec.Limits)
	if err != nil {
		return err
	}
	image, err := prepare(spec, memory)
	if err != nil {
		return err
	}
	send := startSender()
	if err := defaultSignals(); err != nil {
		return fmt.Errorf("resetting signals: %w", err)
	}
	return image.enter(send)
}
