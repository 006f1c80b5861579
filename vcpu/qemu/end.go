package qemu

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Cause is why a machine ended.
type Cause string

// The causes.
const (
	Shutdown Cause = "shutdown" // the guest powered off
	Reset    Cause = "reset"    // the guest rebooted
	Panic    Cause = "panic"    // the guest's kernel said that it panicked (module pvpanic_pci)
	Quit     Cause = "quit"     // VM.Quit, or another that spoke QMP
	Killed   Cause = "killed"   // a signal told QEMU to go, or killed it with SIGKILL: VM.Kill, an operator, the host's lack of memory
	Crash    Cause = "crash"    // anything else: QEMU failed
)

// End is how a machine ended.
type End struct {
	Cause Cause
	// Detail is one line for people, never empty.
	Detail string
	// ExitCode is QEMU's, and Signal the number of the one that ended it. Both are -1 when QEMU was adopted: only the process that
	// started it learns them.
	ExitCode, Signal int
	// Stderr is the last lines that QEMU said, printable, at most 4 KiB.
	Stderr string
}

func (e End) String() string {
	s := string(e.Cause) + ": " + e.Detail
	if e.Stderr != "" && e.Cause == Crash {
		s += ": " + e.Stderr
	}
	return s
}

// guestCause translates QEMU's reasons for a shutdown (QAPI ShutdownCause).
func guestCause(reason string) (Cause, string) {
	switch reason {
	case "guest-shutdown":
		return Shutdown, "the guest powered off"
	case "guest-reset", "subsystem-reset":
		return Reset, "the guest rebooted"
	case "guest-panic":
		return Panic, "the guest's kernel panicked"
	case "host-qmp-quit", "host-ui":
		return Quit, "QEMU was told to quit"
	case "host-signal":
		return Killed, "a signal told QEMU to end"
	case "host-error":
		return Crash, "QEMU found an error of its own"
	}
	return Crash, fmt.Sprintf("QEMU shut down for a reason unknown to Grail: %.64q", reason)
}

// stateCause tells why QEMU is in a state from which the guest does not run on (QAPI RunState). ok is false for other
// states.
func stateCause(state string) (cause Cause, detail string, ok bool) {
	switch state {
	case "shutdown":
		return Shutdown, "the guest powered off or rebooted while nobody watched", true
	case "guest-panicked":
		return Panic, "the guest's kernel panicked while nobody watched", true
	case "internal-error":
		return Crash, "QEMU or KVM could not execute the guest", true
	}
	return "", "", false
}

const stderrFile = "stderr.log"

// lastWords returns the end of what QEMU said.
func lastWords(dir string) string {
	const most = 4 << 10
	f, err := os.Open(filepath.Join(dir, stderrFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	from := max(size-most, 0)
	b, err := io.ReadAll(io.NewSectionReader(f, from, min(size, most)))
	if err != nil {
		return ""
	}
	if _, rest, ok := bytes.Cut(b, []byte("\n")); from > 0 && ok {
		b = rest
	}
	return strings.TrimSpace(printable(b))
}
