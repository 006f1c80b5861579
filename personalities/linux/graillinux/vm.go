package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/conlog"
	"github.com/grailos/grail/personalities/linux/agent"
	"github.com/grailos/grail/vcpu/qemu"
)

// Time limits.
const (
	bootLimit     = 5 * time.Minute  // until the agent answers; translated guests on a busy host are slow
	shutdownLimit = 30 * time.Second // for the guest to end in good order once its program has
	goneLimit     = 20 * time.Second // for the machine to say how it ended, once its agent is gone
)

// vm is the one VM that this process runs.
type vm struct {
	spec    *hv.Spec
	console *conlog.Console
	serial  *serial
	ctx     context.Context // ends when the VM is to end at once
	kill    context.CancelFunc
	signals chan syscall.Signal // for the VM's program
	resize  chan agent.Size     // of its terminal; mu is held to send

	mu      sync.Mutex
	machine *qemu.VM
	agent   *agent.Client
	ready   chan struct{} // closed when agent is there
	stopped bool          // somebody asked for the end

	memory memory

	plugging sync.Mutex // held while a device comes or goes
	devices  []device   // guarded by plugging
	numbers  int        // devices that there have been; guarded by plugging
}

func newVM(spec *hv.Spec) *vm {
	log := conlog.New(0, spec.Log, 0)
	v := &vm{spec: spec, console: log, serial: newSerial(log), signals: make(chan syscall.Signal, 16), resize: make(chan agent.Size, 1), ready: make(chan struct{})}
	v.ctx, v.kill = context.WithCancel(context.Background())
	return v
}

// run runs the VM to its end.
func (v *vm) run() hv.Report {
	setup := func(err error) hv.Report { return hv.Report{Cause: hv.CauseSetup, Message: err.Error()} }
	if err := ownProc(); err != nil {
		return setup(err)
	}
	if v.spec.Console != nil {
		if err := v.console.Share(v.spec.Console); err != nil {
			return setup(err)
		}
	}
	port, agentEnd, err := pair("agent")
	if err != nil {
		return setup(err)
	}
	out, consoleEnd, err := pair("console")
	if err != nil {
		return setup(err)
	}
	if v.memory.ram, err = qemu.NewRAM(v.spec.Name, int64(v.spec.MemoryBytes)); err != nil {
		return setup(err)
	}
	go hv.Serve(v.spec.Control, v.serveConn)
	v.memory.keepsFree = v.spec.ReservedBytes > 0
	if err := v.reserve(v.ctx, v.spec.ReservedBytes); err != nil {
		return setup(err)
	}
	m, err := qemu.Start(v.ctx, v.config(agentEnd, consoleEnd))
	agentEnd.Close()
	consoleEnd.Close()
	if err != nil {
		return setup(err)
	}
	v.mu.Lock()
	v.machine = m
	v.mu.Unlock()
	go v.serial.run(out)

	gone := m.Done()
	go func() {
		<-v.ctx.Done()
		_ = m.Kill()
	}()
	code, err := v.work(port, gone)
	if err != nil || v.spec.Argv != nil {
		v.finish(gone)
	}
	end, werr := m.Wait(context.Background())
	if werr != nil {
		return setup(werr)
	}
	return v.verdict(code, err, end)
}

// ownProc mounts the /proc of the process's own PID namespace, if it was started as the first process of one.
func ownProc() error {
	if unix.Getpid() != 1 {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// recorder writes to a console that nobody watches.
type recorder struct{ c *conlog.Console }

func (r recorder) Write(b []byte) (int, error) {
	r.c.Record(b, true)
	return len(b), nil
}

// pair returns the two ends of a stream: ours, and QEMU's.
func pair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	// Ours goes through the runtime's poller, so that closing it ends a read.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// config is the machine.
func (v *vm) config(agentEnd, consoleEnd *os.File) qemu.Config {
	f := v.spec.Foreign
	c := qemu.Config{
		Name: v.spec.Name, Dir: f.Dir, Arch: qemu.Arch(f.Arch), Program: f.QEMU, Kernel: f.Kernel, Initrds: f.Initrds, CPUs: f.CPUs,
		Memory:   int64(v.spec.MemoryBytes),
		RAM:      v.memory.ram,
		KeepFree: v.memory.keepsFree,
		Cmdline:  kernelLine(f.Arch),
		Channels: []qemu.Channel{{Name: agent.PortName, Stream: qemu.Stream{Conn: agentEnd}}},
		Console:  qemu.Console{Kind: qemu.SerialConsole, Stream: qemu.Stream{Conn: consoleEnd}},
	}
	for _, d := range f.Disks {
		c.Disks = append(c.Disks, v.add(hv.ForeignDevice{Disk: &d}).disk())
	}
	for _, n := range f.NICs {
		c.NICs = append(c.NICs, v.add(hv.ForeignDevice{NIC: &n}).nic())
	}
	return c
}

// kernelLine is the kernel's command line: a panic ends the guest, and the slow serial console hears only what matters.
func kernelLine(arch string) string {
	// A PC reboots by a triple fault: the kernel's other ways take seconds to fail on a machine without a keyboard controller.
	machine := "console=ttyS0 reboot=t"
	if arch == "arm64" {
		machine = "console=ttyAMA0"
	}
	return machine + " panic=-1 loglevel=4 random.trust_cpu=on rdinit=/init"
}

// work waits for the agent and runs the VM's program. Without one it waits for the end of the VM.
func (v *vm) work(port io.ReadWriteCloser, gone <-chan struct{}) (code int, err error) {
	limit := bootLimit
	if ms := v.spec.Foreign.BootMs; ms > 0 {
		limit = time.Duration(ms) * time.Millisecond
	}
	boot, cancel := context.WithTimeoutCause(v.ctx, limit, fmt.Errorf("not within %v", limit))
	defer cancel()
	go func() {
		select {
		case <-gone:
			cancel()
		case <-boot.Done():
		}
	}()
	a, err := agent.Dial(boot, port)
	if err != nil {
		return 0, err
	}
	v.mu.Lock()
	v.agent = a
	v.mu.Unlock()
	if a.Hello.Failure != "" {
		// What works without a part of what it was to have may do harm.
		return 0, fmt.Errorf("the guest is not as it should be: %s", a.Hello.Failure)
	}
	close(v.ready)
	if len(v.spec.Argv) == 0 {
		<-a.Done()
		return 0, nil
	}
	o := agent.ExecOptions{Process: agent.Process{Argv: v.spec.Argv, Env: v.spec.Env, Dir: v.spec.Dir, User: v.spec.Foreign.User}, Signals: v.signals, TTY: v.spec.Foreign.TTY, Resize: v.resize,
		Stdin: file(v.spec.Stdin, "stdin"), Stdout: v.output(v.spec.Stdout), Stderr: v.output(v.spec.Stderr)}
	if o.TTY {
		o.Size = v.size()
	}
	return a.Exec(v.ctx, o)
}

// file returns the file of a descriptor, as a nil interface when there is none.
func file(fd int, name string) io.Reader {
	if fd < 0 {
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}

// output is where the program's output goes: to the log as well, and to it alone when nobody watches.
func (v *vm) output(fd int) io.Writer {
	if fd < 0 {
		return recorder{v.console}
	}
	return io.MultiWriter(os.NewFile(uintptr(fd), "output"), recorder{v.console})
}

// finish ends the guest in good order, then by force.
func (v *vm) finish(gone <-chan struct{}) {
	v.mu.Lock()
	a := v.agent
	v.mu.Unlock()
	ctx, cancel := context.WithTimeout(v.ctx, shutdownLimit)
	defer cancel()
	if a != nil {
		if a.Shutdown(ctx, agent.Shutdown{Mode: agent.PowerOff}) != nil {
			// A guest that reset itself or panicked takes its agent along; the machine's own word on that comes after.
			ctx, cancel = context.WithTimeout(ctx, goneLimit)
			defer cancel()
		}
		select {
		case <-gone:
			return
		case <-ctx.Done():
		}
	}
	v.kill()
}

// verdict makes the report.
func (v *vm) verdict(code int, err error, end qemu.End) hv.Report {
	v.mu.Lock()
	stopped, booted := v.stopped, v.agent != nil
	v.mu.Unlock()
	if why := v.memory.overdrawn(); why != "" {
		return hv.Report{Cause: hv.CauseMemory, Message: why}
	}
	switch {
	case stopped && !booted, v.ctx.Err() != nil && stopped:
		return hv.Report{Cause: hv.CauseStop, Message: "stopped on request"}
	case end.Cause == qemu.Panic:
		return hv.Report{Cause: hv.CauseEngine, Message: "the guest's kernel panicked; its console's last lines tell more (grailctl logs " + v.spec.Name + ")"}
	case err != nil && booted && errors.Is(err, agent.ErrGuest):
		return hv.Report{Cause: hv.CauseExit, Code: code, Message: err.Error()}
	case err == nil && len(v.spec.Argv) == 0 && !stopped && end.Cause != qemu.Shutdown:
		return hv.Report{Cause: hv.CauseEngine, Message: end.String()}
	case err != nil && !stopped:
		return hv.Report{Cause: hv.CauseEngine, Message: fmt.Sprintf("%v; %s", err, end.Detail)}
	}
	return hv.Report{Cause: hv.CauseExit, Code: code}
}
