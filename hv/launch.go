package hv

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Launch collects a Spec and the files that its descriptor fields name, and starts a grailvm with them.
// It is not safe for concurrent use.
type Launch struct {
	Exec
	// Spec is what grailvm will run. NewLaunch sets every descriptor field to -1.
	Spec Spec
}

// Start starts grailvm with the Spec; see Exec.Start.
func (l *Launch) Start() (*Process, error) { return l.Exec.Start("grailvm", l.Spec.Name, &l.Spec) }

// PortalLaunch starts a portal, as Launch starts a grailvm.
type PortalLaunch struct {
	Exec
	Spec PortalSpec
}

// Start starts the portal with the Spec; see Exec.Start.
func (l *PortalLaunch) Start() (*Process, error) {
	return l.Exec.Start("grailport", l.Spec.Driver, &l.Spec)
}

// Exec is how one of Grail's processes is started: a program, and the files that its specification names. It is
// not safe for concurrent use.
type Exec struct {
	// Path is the program.
	Path string
	// Tag is the process's last argument. The program ignores it; it lets a supervisor that lost its notes
	// find the process again.
	Tag string
	// Stderr takes what the program itself says before it is jailed, and its panics; nil: nothing does.
	Stderr *os.File
	// SharedNamespaces leaves the new process in the caller's namespaces.
	SharedNamespaces bool
	// HostNetwork leaves the new process in the caller's network namespace alone.
	HostNetwork bool

	files []*os.File
}

// firstFile is the number of the first added file in the new process.
const firstFile = SpecFD + 1

// ErrNamespaces reports that the host does not let the caller create the namespaces that a VM is jailed in.
var ErrNamespaces = errors.New("hv: the host refuses new namespaces")

// NewLaunch returns a Launch of the grailvm program at path, whose Spec has a name, a kind and no files.
func NewLaunch(path string, kind Kind, name string) *Launch {
	return &Launch{Exec: Exec{Path: path}, Spec: Spec{
		Name: name, Kind: kind,
		Program: -1, Files: -1, KVM: -1, Stdin: -1, Stdout: -1, Stderr: -1,
		Log: [2]int{-1, -1}, Control: -1, Report: -1, HostStatus: -1,
	}}
}

// Add makes f part of the new process and returns its descriptor number there: the same number for the
// same file, -1 for nil. f stays the caller's, and must stay open until Start has returned.
func (l *Exec) Add(f *os.File) int {
	if f == nil {
		return -1
	}
	for i, have := range l.files {
		if have == f {
			return firstFile + i
		}
	}
	l.files = append(l.files, f)
	return firstFile + len(l.files) - 1
}

// File returns the file that Add numbered fd, or nil.
func (l *Exec) File(fd int) *os.File {
	if i := fd - firstFile; i >= 0 && i < len(l.files) {
		return l.files[i]
	}
	return nil
}

// Start starts the program with the arguments program, name and Tag, in new mount, PID, network, IPC and UTS
// namespaces (and a user namespace, when the caller is not root), in a session of its own, with an empty
// environment except GRAILVM_*, and with v as JSON in a sealed memfd on descriptor SpecFD. The process outlives its
// starter. Errors: ErrNamespaces.
func (l *Exec) Start(program, name string, v any) (*Process, error) {
	spec, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("hv: encode spec: %w", err)
	}
	sealed, err := NewSealed("grail-spec", spec)
	if err != nil {
		return nil, err
	}
	defer sealed.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	stderr := l.Stderr
	if stderr == nil {
		stderr = null
	}
	files := append([]*os.File{null, null, stderr, sealed}, l.files...)
	fds := make([]uintptr, len(files))
	for i, f := range files {
		if fds[i], err = rawFD(f); err != nil {
			return nil, fmt.Errorf("hv: file %s: %w", f.Name(), err)
		}
	}
	pidfd := -1
	sys := &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if !l.SharedNamespaces {
		sys.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
		if l.HostNetwork {
			sys.Cloneflags &^= unix.CLONE_NEWNET
		}
		if uid := os.Geteuid(); uid != 0 {
			sys.Cloneflags |= unix.CLONE_NEWUSER
			sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
			sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		}
	}
	pid, _, err := syscall.StartProcess(l.Path, []string{program, name, l.Tag}, &syscall.ProcAttr{
		Dir: "/", Env: vmmEnv(), Files: fds, Sys: sys,
	})
	runtime.KeepAlive(files)
	if err != nil {
		if !l.SharedNamespaces && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL)) {
			return nil, fmt.Errorf("%w: %w", ErrNamespaces, err)
		}
		return nil, fmt.Errorf("hv: start %s: %w", l.Path, err)
	}
	p := &Process{PID: pid, child: true}
	if p.start, err = startTime(pid); err == nil {
		p.fd, err = pollable(pidfd, pid)
	}
	if err != nil {
		// Not to lose a process that nobody could ever find again.
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
		return nil, err
	}
	return p, nil
}

// vmmEnv returns the caller's GRAILVM_* variables.
func vmmEnv() []string {
	env := []string{}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "GRAILVM_") {
			env = append(env, kv)
		}
	}
	return env
}

// rawFD returns f's descriptor number without making its file description blocking, which (*os.File).Fd may do
// and which would reach every other holder of an eventfd.
func rawFD(f *os.File) (uintptr, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n uintptr
	err = c.Control(func(fd uintptr) { n = fd })
	return n, err
}
