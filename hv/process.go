package hv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a handle on a running grailvm that can never come to mean another process. Its methods are
// safe for concurrent use.
type Process struct {
	PID   int
	start uint64   // boot-clock ticks, see StartTime
	fd    *os.File // pidfd, in the runtime's poller
	child bool
}

// ErrGone reports that a process is not there any more, or that its number belongs to another one now.
var ErrGone = errors.New("hv: process is gone")

// OpenProcess returns a handle on the process pid if it is the one that started at start (see StartTime), whether
// or not it is a child of the caller. Errors: ErrGone.
func OpenProcess(pid int, start uint64) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	f, err := pollable(fd, pid)
	if err != nil {
		return nil, err
	}
	// The pidfd is open: if the start time matches now, the number has not been reused before.
	if got, err := startTime(pid); err != nil || got != start {
		f.Close()
		return nil, fmt.Errorf("%w: %d", ErrGone, pid)
	}
	return &Process{PID: pid, start: start, fd: f}, nil
}

// FindProcess returns a handle on the process pid if is accepts its arguments, whether or not it is a child of the caller.
// Errors: ErrGone.
func FindProcess(pid int, is func(args []string) bool) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	f, err := pollable(fd, pid)
	if err != nil {
		return nil, err
	}
	// As in OpenProcess: what is read now belongs to the process of the pidfd, unless that has ended meanwhile.
	args, err := Arguments(pid)
	p := &Process{PID: pid, fd: f}
	if err == nil {
		p.start, err = startTime(pid)
	}
	if err != nil || !is(args) || p.Ended() {
		f.Close()
		return nil, fmt.Errorf("%w: %d", ErrGone, pid)
	}
	return p, nil
}

// Arguments returns the command line of the process pid. A process that was killed has lost its own when its first thread has
// ended, while another thread may still be in a system call; that thread has it until then. Errors: ErrGone.
func Arguments(pid int) ([]string, error) {
	proc := "/proc/" + strconv.Itoa(pid)
	cmd, err := os.ReadFile(proc + "/cmdline")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	if len(cmd) == 0 {
		threads, err := os.ReadDir(proc + "/task")
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrGone, err)
		}
		for _, t := range threads {
			// An error means that the thread has ended.
			if cmd, err = os.ReadFile(proc + "/task/" + t.Name() + "/cmdline"); err == nil && len(cmd) > 0 {
				break
			}
		}
	}
	return strings.Split(strings.TrimRight(string(cmd), "\x00"), "\x00"), nil
}

// StartTime returns when the process started, in clock ticks since boot (proc(5), /proc/pid/stat field 22).
// Together with the PID it names the process for ever.
func (p *Process) StartTime() uint64 { return p.start }

// Kill ends the process with SIGKILL. It is no error if it has ended already.
func (p *Process) Kill() error { return p.Signal(unix.SIGKILL) }

// Signal sends sig. It is no error if the process has ended, or if the handle was closed, which is done when it has.
func (p *Process) Signal(sig unix.Signal) error {
	err := p.control(func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
	if errors.Is(err, unix.ESRCH) || errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

// Wait returns when every thread of the process has ended, so that nothing it began can still take effect,
// or with os.ErrDeadlineExceeded after timeout; 0 means no timeout. A child is reaped.
func (p *Process) Wait(timeout time.Duration) error {
	until := time.Time{}
	if timeout > 0 {
		until = time.Now().Add(timeout)
	}
	if err := p.fd.SetReadDeadline(until); err != nil {
		return fmt.Errorf("hv: wait for process %d: %w", p.PID, err)
	}
	c, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	if err := c.Read(func(fd uintptr) bool { return ended(int(fd)) }); err != nil {
		return fmt.Errorf("hv: wait for process %d: %w", p.PID, err)
	}
	if p.child {
		// An error means that it was reaped already.
		_ = p.control(func(fd int) error { return unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG, nil) })
	}
	return nil
}

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	over := true
	_ = p.control(func(fd int) error { over = ended(fd); return nil })
	return over
}

// Close gives up the handle; the process runs on.
func (p *Process) Close() error { return p.fd.Close() }

func (p *Process) control(f func(fd int) error) error {
	c, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := c.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return fmt.Errorf("%w: %d: %w", ErrGone, p.PID, err) // the handle was closed
	}
	return ferr
}

// ended reports whether a pidfd polls readable: the process has ended (pidfd_open(2)).
func ended(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// pollable hands a pidfd to the runtime's poller. fd -1, from a kernel that gave none, is opened by pid.
func pollable(fd, pid int) (*os.File, error) {
	if fd < 0 {
		var err error
		if fd, err = unix.PidfdOpen(pid, 0); err != nil {
			return nil, fmt.Errorf("hv: pidfd_open %d: %w", pid, err)
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// startTime reads field 22 of /proc/pid/stat. The second field, the program's name, may hold anything.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrGone, err)
	}
	if i := bytes.LastIndexByte(b, ')'); i >= 0 {
		// The first field after the name is the third.
		if f := bytes.Fields(b[i+1:]); len(f) > 22-3 {
			return strconv.ParseUint(string(f[22-3]), 10, 64)
		}
	}
	return 0, fmt.Errorf("hv: /proc/%d/stat is malformed", pid)
}
