//go:build linux && amd64

package process

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Support says what this host offers to the engine.
type Support struct {
	// Works is true when a trial guest ran in a full jail.
	Works bool
	// WorksWeakly is true when it ran with Config.AllowWeak only.
	WorksWeakly bool
	// Traced is true when ptrace is permitted.
	Traced bool
	// Kernel is the release of the kernel.
	Kernel string
	// Missing says in words what prevents the engine from working, or from working fully; empty when nothing does.
	Missing []string
}

// SupervisorIoctls are the requests of those calls' ioctl, all on the guest's notification descriptor.
var SupervisorIoctls = []uint32{notifRecv, notifSend, notifIDValid, notifAddFD, notifSetFlags}

// SupervisorSyscalls are the system calls that a supervisor makes, besides those of the Go runtime, for guests that were
// started before: Next, Call, memory, signals and the tracer. An allow-list can be narrowed further: every
// process number is the guest's.
var SupervisorSyscalls = []uint32{
	unix.SYS_PPOLL, unix.SYS_IOCTL, // Next, Call.Return, Call.Install
	unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, // memory
	unix.SYS_PREAD64, unix.SYS_PWRITE64, // /proc/PID/status; /proc/PID/mem where process_vm_* is refused
	unix.SYS_PTRACE, unix.SYS_WAIT4, // the tracer
	unix.SYS_TGKILL, unix.SYS_PIDFD_SEND_SIGNAL, // signals
	unix.SYS_NEWFSTATAT, // only for a guest without namespaces
	unix.SYS_CLOSE,      // Close
}

// Probe finds out whether the engine works here by running a trial guest of a few instructions. The error is only for a
// host on which not even that could be tried.
func Probe() (Support, error) {
	var s Support
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return s, err
	}
	s.Kernel = unix.ByteSliceToString(uts.Release[:])
	missing := func(format string, args ...any) { s.Missing = append(s.Missing, fmt.Sprintf(format, args...)) }

	if ok, err := notifSizesMatch(); err != nil {
		missing("seccomp user notification: the kernel has none (%v); Linux 5.10 or newer with CONFIG_SECCOMP_FILTER is needed", err)
		return s, nil
	} else if !ok {
		missing("seccomp user notification: the kernel's structures have other sizes than Linux 5.10 to 6.18")
		return s, nil
	}
	program, err := trialProgram()
	if err != nil {
		return s, err
	}
	defer program.Close()
	jailErr := trial(&s, program, Config{})
	if jailErr == nil {
		s.Works = true
	} else if errors.Is(jailErr, ErrNoHook) {
		return s, jailErr
	} else {
		missing("a full jail: %v", jailErr)
		if err := trial(&s, program, Config{AllowWeak: true}); err == nil {
			s.WorksWeakly = true
		} else {
			missing("a jail without namespaces: %v", err)
		}
	}
	if (s.Works || s.WorksWeakly) && !s.Traced {
		missing("ptrace: not permitted (a container's seccomp policy, or kernel.yama.ptrace_scope=3?); crash reports have no registers, and signals wait for the end of forwarded calls")
	}
	return s, nil
}

// trial runs the trial guest and plays its supervisor.
func trial(s *Support, program *os.File, cfg Config) error {
	cfg.Program, cfg.Argv, cfg.MaxThreads = program, []string{"trial"}, 1
	g, err := Start(cfg)
	if err != nil {
		return err
	}
	defer g.Close()
	s.Traced = g.Traced()
	for {
		c, err := g.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		val := Errno(unix.ENOSYS)
		if c.Nr == trialNr && c.Args[0] == trialArg {
			if err := c.Install(int(program.Fd()), trialFD, true); err != nil {
				return fmt.Errorf("installing a descriptor (SECCOMP_IOCTL_NOTIF_ADDFD, Linux 5.9): %w", err)
			}
			var b [4]byte
			if _, err := g.ReadMem(trialBase, b[:]); err != nil || string(b[1:]) != "ELF" {
				return fmt.Errorf("reading guest memory: %q, %w", b, err)
			}
			val = trialArg
		}
		if err := c.Return(val); err != nil {
			return err
		}
	}
	if exit := g.Wait(); exit.Code != trialArg || exit.Signal != 0 {
		return fmt.Errorf("the trial guest ended with code %d and signal %d, not with code %d", exit.Code, exit.Signal, trialArg)
	}
	return nil
}

const (
	trialNr   = 0x47ff
	trialArg  = 42
	trialFD   = 5
	trialBase = 0x400000
)

// trialProgram is an ELF of one segment that makes one forwarded call and exits with its result.
func trialProgram() (*os.File, error) {
	code := []byte{
		0xb8, trialNr & 0xff, trialNr >> 8, 0, 0, // mov eax, trialNr
		0xbf, trialArg, 0, 0, 0, // mov edi, trialArg
		0x0f, 0x05, // syscall
		0x89, 0xc7, // mov edi, eax
		0xb8, unix.SYS_EXIT_GROUP, 0, 0, 0, // mov eax, exit_group
		0x0f, 0x05, // syscall
	}
	const headers = 64 + 56
	size := byte(headers + len(code))
	image := []byte{
		0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 64-bit, little-endian
		2, 0, 62, 0, 1, 0, 0, 0, // ET_EXEC, x86-64
		headers, 0, 0x40, 0, 0, 0, 0, 0, // entry
		64, 0, 0, 0, 0, 0, 0, 0, // program headers
		0, 0, 0, 0, 0, 0, 0, 0, // no sections
		0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0,
		1, 0, 0, 0, 5, 0, 0, 0, // PT_LOAD, r-x
		0, 0, 0, 0, 0, 0, 0, 0, // offset
		0, 0, 0x40, 0, 0, 0, 0, 0, // virtual address
		0, 0, 0x40, 0, 0, 0, 0, 0, // physical address
		size, 0, 0, 0, 0, 0, 0, 0, // in the file
		size, 0, 0, 0, 0, 0, 0, 0, // in memory
		0, 0x10, 0, 0, 0, 0, 0, 0, // alignment
	}
	fd, err := unix.MemfdCreate("trial", unix.MFD_CLOEXEC|0x10)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("trial", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "trial")
	if _, err := f.Write(append(image, code...)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
