package sys

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/vfs"
	"github.com/grailos/grail/vcpu/process"
)

// TestMain makes the test binary the parent of guests on engine process.
func TestMain(m *testing.M) {
	process.ChildMain()
	os.Exit(m.Run())
}

// processResult is what a guest on engine process left behind.
type processResult struct {
	End
	fault *hv.Fault
	table *vfs.Table
}

// runProcess runs a Go guest from source text on engine process to its end; while is called when it runs.
func runProcess(t *testing.T, memory uint64, source string, while func(*ProcessGuest)) processResult {
	t.Helper()
	program := build(t, source)
	if os.Getenv(guestsOnlyEnv) != "" {
		t.Skip("SKIPPED: guests are only compiled")
	}
	if s, err := process.Probe(); err != nil || !s.Works {
		t.Skipf("SKIPPED, NO ENGINE: process: %v, %v", s.Missing, err)
	}
	f, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := vfs.New(vfs.Config{Stdin: -1, Stdout: -1, Stderr: -1, Log: [2]int{-1, -1}, Files: -1, Program: int(f.Fd()), ProgramName: "guest"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	p, err := NewProcess(Config{MemoryBytes: memory, MaxThreads: 64, Program: f, Argv: []string{filepath.Base(program)}, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	if while != nil {
		go while(p)
	}
	return processResult{End: p.Run(), fault: p.Fault(), table: table}
}

// A guest that runs out of memory is told from one that fails for another reason, whatever it prints and however large the last piece was.
func TestProcessOutOfMemory(t *testing.T) {
	for _, c := range []struct {
		name, source string
		want         hv.Cause
		code         int
		said         string
	}{
		{"small pieces", `package main
func main() { var all [][]byte; for { b := make([]byte, 1<<20); for i := range b { b[i] = 1 }; all = append(all, b) } }`, hv.CauseMemory, 0, "fatal error: "},
		{"at once", `package main
func main() { b := make([]byte, 1<<40>>len(all)); b[0] = 1; all = append(all, b) }
var all [][]byte
`, hv.CauseMemory, 0, "fatal error: "},
		{"pages of stacks", `package main
func main() {
	for range 300 { go func() { select {} }() }
	var all [][]byte
	for { b := make([]byte, 1<<20); for i := range b { b[i] = 1 }; all = append(all, b) }
}`, hv.CauseMemory, 0, "fatal error: "},
		{"panic", `package main
func main() { panic("no more") }`, hv.CauseExit, 2, "panic: no more"},
		{"said and survived", `package main
import "os"
func main() { os.Stdout.WriteString("fatal error: out of memory\n"); os.Exit(3) }`, hv.CauseExit, 3, "fatal error: out of memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := runProcess(t, 32<<20, c.source, nil)
			if r.Cause != c.want || r.Code != c.code || c.want == hv.CauseMemory && !strings.Contains(r.Message, "32 MiB") {
				t.Errorf("%v", r.End)
			}
			if said := r.table.Said(); !strings.HasPrefix(said, c.said) {
				t.Errorf("said %q; last lines %q", said, r.table.Console())
			}
		})
	}
}

func TestStarved(t *testing.T) {
	const oom, other = "fatal error: runtime: cannot allocate memory", "fatal error: all goroutines are asleep - deadlock!"
	for _, c := range []struct {
		said          string
		near, stopped bool
		exit          process.Exit
		want          bool
	}{
		{oom, false, false, process.Exit{Code: 2}, true},
		{oom, false, false, process.Exit{Code: 1}, false},
		{oom, false, false, process.Exit{Signal: unix.SIGABRT}, true},
		{oom, false, false, process.Exit{Signal: unix.SIGSEGV}, false},
		{oom, false, true, process.Exit{Signal: unix.SIGKILL, Killed: true}, true}, // ended as hung, while it said so
		{other, false, false, process.Exit{Code: 2}, false},
		{other, true, false, process.Exit{Code: 2}, true},
		{other, true, true, process.Exit{Signal: unix.SIGKILL, Killed: true}, false},
		{"panic: out of memory", true, false, process.Exit{Code: 2}, false},
		{"terminate called after throwing an instance of 'std::bad_alloc'", false, false, process.Exit{Signal: unix.SIGABRT}, true},
		{"terminate called after throwing an instance of 'std::bad_cast'", true, false, process.Exit{Signal: unix.SIGABRT}, false},
		{"", true, false, process.Exit{Code: 2}, false},
	} {
		if got := starved(c.said, c.near, &c.exit, c.stopped); got != c.want {
			t.Errorf("%q, near %v, stopped %v, %+v: %v", c.said, c.near, c.stopped, c.exit, got)
		}
	}
}

// A guest that is stopped while it hangs says where: in its loop, or in the call that never returned.
func TestWhereProcessStopped(t *testing.T) {
	for _, c := range []struct{ name, source string }{
		{"loop", `package main
import "syscall"
func main() { syscall.Getpgrp(); for {} }`},
		{"call", `package main
import "syscall"
func main() { syscall.Getpgrp(); var b [1]byte; syscall.Read(0, b[:]); select {} }`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := runProcess(t, 64<<20, c.source, func(p *ProcessGuest) {
				for p.count.Load() == 0 {
					runtime.Gosched()
				}
				p.Kill()
			})
			f := r.fault
			if r.Cause != hv.CauseStop || f == nil || f.Signal != 0 || f.Vector >= 0 || f.Regs["rip"] == 0 || len(f.Code) == 0 || len(f.Frames) == 0 {
				t.Errorf("%v, %+v", r.End, f)
			}
		})
	}
}

// What is decoded is the instruction at the instruction pointer, not one before it.
func TestProcessFaultCode(t *testing.T) {
	c := &process.Crash{CodeAddr: 0x1000 - 4, Code: []byte{1, 2, 3, 4, 0x0f, 0x0b}, Regs: unix.PtraceRegs{Rip: 0x1000}}
	if f := faultOf(c, unix.SIGILL); len(f.Code) != 2 || f.Code[0] != 0x0f || f.Signal != int(unix.SIGILL) {
		t.Errorf("%+v", f)
	}
	c.Code = nil
	if f := faultOf(c, 0); len(f.Code) != 0 {
		t.Errorf("%+v", f)
	}
}

// Of the threads of a guest that was stopped, one that ran is shown, then one in a call that is not a wait for work.
func TestBusiest(t *testing.T) {
	thread := func(tid int, nr int64) *process.Crash {
		return &process.Crash{TID: tid, Regs: unix.PtraceRegs{Orig_rax: uint64(nr)}}
	}
	waits, calls, runs := thread(1, unix.SYS_FUTEX), thread(2, unix.SYS_READ), thread(3, -1)
	for _, c := range []struct {
		list []*process.Crash
		want *process.Crash
	}{
		{nil, nil},
		{[]*process.Crash{waits}, waits},
		{[]*process.Crash{waits, calls, thread(4, unix.SYS_WRITE)}, calls},
		{[]*process.Crash{waits, calls, runs}, runs},
	} {
		if got := busiest(c.list); got != c.want {
			t.Errorf("%v: %v", c.list, got)
		}
	}
}
