// Command grailvm runs one VM: it reads a hv.Spec from descriptor 3, gathers what the VM needs, jails itself, runs the
// guest to its end, and writes a hv.Report. It is started by graild (hv.Launch), never by hand, and ignores its
// arguments. After the jail it opens no path, and holds no descriptor that the VM may not use.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/inject"
	"github.com/grailos/grail/hv/jail"
	"github.com/grailos/grail/hv/sys"
	"github.com/grailos/grail/hv/vfs"
	"github.com/grailos/grail/vcpu/process"
)

func main() {
	process.ChildMain()
	// The VMM allocates little; a collection now and then costs less than its pauses would on every exit.
	debug.SetGCPercent(400)
	started := time.Now()
	spec, err := readSpec()
	if err != nil {
		fmt.Fprintln(os.Stderr, "grailvm:", err)
		os.Exit(1)
	}
	_ = hv.TuneRuntime() // a host on which that fails pays a little more
	if spec.RealTime {
		runtime.GOMAXPROCS(realTimeProcs)
	}
	vm := &vm{spec: spec, started: started}
	vm.report(vm.run())
}

// realTimeProcs is how many threads of a VMM with a deadline may be between system calls at once.
const realTimeProcs = 64

// maxSpec bounds the specification in bytes.
const maxSpec = 1 << 20

func readSpec() (*hv.Spec, error) {
	f := os.NewFile(hv.SpecFD, "spec")
	if f == nil {
		return nil, fmt.Errorf("no specification on descriptor %d: grailvm is started by graild", hv.SpecFD)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(io.NewSectionReader(f, 0, maxSpec), maxSpec))
	if err != nil {
		return nil, fmt.Errorf("specification on descriptor %d: %w (grailvm is started by graild)", hv.SpecFD, err)
	}
	spec := new(hv.Spec)
	if err := json.Unmarshal(b, spec); err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	return spec, nil
}

// engine is a guest on one of the engines.
type engine interface {
	Run() sys.End
	Kill()
	Signal(sig int) error
	Stats() hv.Stats
	Fault() *hv.Fault
	Denied() map[string]int
	Revoke(object uint64) error
	Inject(*inject.Order) (inject.Hit, error)
	Leader() int
	Limit(milli int) error
	Reserve(bytes uint64) error
	Reclaim(*hv.Reclaim) (*hv.Reclaimed, error)
}

// run brings the VM up, runs it and returns how it ended.
func (v *vm) run() sys.End {
	if err := v.setUp(); err != nil {
		return sys.End{Cause: hv.CauseSetup, Message: err.Error()}
	}
	r, err := v.jail()
	if err != nil {
		return sys.End{Cause: hv.CauseSetup, Message: err.Error()}
	}
	v.jailMissing = r.Missing
	if v.spec.Control >= 0 {
		go hv.Serve(v.spec.Control, v.serveConn)
	}
	if err := v.engine.Reserve(v.spec.ReservedBytes); err != nil {
		return sys.End{Cause: hv.CauseSetup, Message: err.Error()}
	}
	if v.spec.Kind == hv.Personality {
		v.setReady()
	}
	return v.engine.Run()
}

// setUp makes everything that needs more than the jail allows.
func (v *vm) setUp() error {
	s := v.spec
	program := os.NewFile(uintptr(s.Program), "program")
	if s.Program < 0 || program == nil {
		return fmt.Errorf("the specification names no program")
	}
	if err := v.mapStatus(); err != nil {
		return err
	}
	name := s.Name
	if len(s.Argv) > 0 {
		name = baseName(s.Argv[0])
	}
	var err error
	v.table, err = vfs.New(vfs.Config{
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Log: s.Log, Console: s.Console, Files: s.Files, Program: s.Program,
		ProgramName: name, Dir: s.Dir, TmpLimit: s.MemoryBytes / 4, OnMessage: v.onMessage, Busy: v.busy,
	})
	if err != nil {
		return err
	}
	cfg := sys.Config{KVM: s.KVM, MemoryBytes: s.MemoryBytes, MaxThreads: s.MaxThreads, Program: program,
		Argv: s.Argv, Env: s.Env, Table: v.table, Driver: s.Kind == hv.Driver}
	if v.engine, err = newEngine(s.Engine, cfg); err != nil {
		return err
	}
	_, err = v.install(s.Caps)
	return err
}

// newEngine makes the guest. An error comes with no engine at all, so that nobody asks it for its last word.
func newEngine(name hv.Engine, cfg sys.Config) (engine, error) {
	switch name {
	case hv.EngineKVM:
		g, err := sys.New(cfg)
		if err != nil {
			return nil, err
		}
		return g, nil
	case hv.EngineProcess:
		g, err := sys.NewProcess(cfg)
		if err != nil {
			return nil, err
		}
		return g, nil
	}
	return nil, fmt.Errorf("engine %q, expected %q or %q", name, hv.EngineKVM, hv.EngineProcess)
}

// kvmSyscalls are what engine kvm needs from the host, beside the Go runtime's and vfs's own.
var kvmSyscalls = []string{"madvise", "munmap", "sched_yield", "ppoll", "eventfd2", "fstat", "clock_gettime"}

func (v *vm) jail() (jail.Result, error) {
	cfg := jail.Config{Syscalls: vfs.HostSyscalls, NoYield: v.spec.RealTime, Log: os.Getenv("GRAIL_JAIL_LOG") != ""}
	switch v.spec.Engine {
	case hv.EngineKVM:
		cfg.Syscalls = append(append([]string{}, cfg.Syscalls...), kvmSyscalls...)
		cfg.Ioctls = append(append([]uint32{}, jail.KVMIoctls...), vfs.HostIoctls...)
	case hv.EngineProcess:
		cfg.Numbers = process.SupervisorSyscalls
		cfg.Ioctls = append(append([]uint32{}, process.SupervisorIoctls...), vfs.HostIoctls...)
	}
	if unix.Getpid() != 1 {
		cfg.Shared = true
	}
	return jail.Enter(cfg)
}

func baseName(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[i+1:]
		}
	}
	return path
}

// report writes the VM's last word and ends the process.
func (v *vm) report(end sys.End) {
	r := hv.Report{Name: v.spec.Name, Cause: end.Cause, Code: end.Code, Signal: end.Signal, Message: end.Message,
		Started: v.started, Ended: time.Now()}
	if v.engine != nil {
		r.Fault, r.Stats, r.Denied = v.engine.Fault(), v.engine.Stats(), v.engine.Denied()
	}
	if v.table != nil {
		r.Console, r.Said = v.table.Console(), v.table.Said()
	}
	b, err := json.Marshal(r)
	if err == nil && v.spec.Report >= 0 {
		for at := int64(0); at < int64(len(b)); {
			n, err := unix.Pwrite(v.spec.Report, b[at:], at)
			if err == unix.ESPIPE {
				n, err = unix.Write(v.spec.Report, b[at:])
			}
			if err != nil {
				break
			}
			at += int64(n)
		}
	}
	os.Exit(0)
}
