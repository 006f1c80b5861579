package sys

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/mm"
	"github.com/grailos/grail/hv/vfs"
	"github.com/grailos/grail/vcpu/kvm"
)

// Config says what to run.
type Config struct {
	KVM         int // an open /dev/kvm
	MemoryBytes uint64
	MaxThreads  int
	Program     *os.File // a static ELF
	Argv, Env   []string
	CPUs        int // what the guest is told to have
	Table       *vfs.Table

	// Driver says that others wait for the guest: what is surely the end of its program ends it at once. See hopeless.
	Driver bool
}

// End says how a guest ended.
type End struct {
	Cause   hv.Cause
	Code    int
	Signal  int
	Message string
}

// Guest is one running native program. Its methods are safe for concurrent use, unless noted.
type Guest struct {
	cfg     Config
	machine *kvm.Machine
	space   *mm.Space
	futexes futexes
	clock   *clock
	bias    uint64 // of a position-independent program

	goRuntime bool // the program has Go's; see goSlack

	mu      sync.Mutex
	threads map[int]*thread
	lastTID int
	end     *End // set once: every thread leaves
	fault   *hv.Fault
	denied  map[uint64]int
	gone    sync.WaitGroup // threads

	signals signals
	timers  timers

	leader   atomic.Int64 // host thread of the guest's first thread
	throttle throttle

	orders     orders
	reserving  sync.Mutex // held while reserved is changed
	reserved   atomic.Uint64
	prefaulted atomic.Uint64
	lost       atomic.Uint64 // address of taken memory that the guest has used, until it asks what was taken; 0: none

	exits, calls, faults atomic.Uint64
	byNumber             [512]atomic.Uint64 // calls with a number below its length
}

const startVCPUs = 4

// New makes the virtual machine and its empty address space. What needs /dev/kvm or new descriptors is done here,
// before the caller jails itself; the hostile program is first looked at in Run.
func New(cfg Config) (*Guest, error) {
	if cfg.MaxThreads <= 0 {
		cfg.MaxThreads = hv.DefaultMaxThreads
	}
	cfg.MaxThreads = min(cfg.MaxThreads, kvm.MaxVCPUs)
	m, err := kvm.Open(cfg.KVM, cfg.MaxThreads)
	if err != nil {
		return nil, err
	}
	g := &Guest{cfg: cfg, machine: m, threads: make(map[int]*thread), denied: make(map[uint64]int)}
	g.signals.guest, g.signals.actions = g, m.Actions()
	g.timers.guest = g
	if g.space, err = mm.New(m, cfg.MemoryBytes); err != nil {
		m.Close()
		return nil, err
	}
	if err := g.orders.open(); err != nil {
		m.Close()
		return nil, err
	}
	// A Go program starts with this many threads; made here, they are not waited for later.
	go m.Prepare(min(startVCPUs, cfg.MaxThreads))
	g.clock = newClock(m.Clock())
	return g, nil
}

// Run loads the program, runs it to its end and returns how it ended. It is called once.
func (g *Guest) Run() End {
	start, err := g.load()
	if err != nil {
		return End{Cause: hv.CauseSetup, Message: err.Error()}
	}
	g.space.Seal()
	t, err := g.newThread()
	if err != nil {
		return End{Cause: hv.CauseSetup, Message: err.Error()}
	}
	r := t.cpu.Regs()
	r.RIP, r.RSP = start.entry, start.stack
	stop := g.clock.keep()
	g.startThread(t, nil)
	g.gone.Wait()
	stop()
	g.timers.stopAll()
	g.throttle.set(g, 0)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.end == nil {
		g.end = &End{Cause: hv.CauseExit} // the last thread left by exit(2)
	}
	return *g.end
}

// finish ends the guest, once: the first reason counts. It does not wait.
func (g *Guest) finish(e End) {
	g.mu.Lock()
	if g.end == nil {
		g.end = &e
	}
	all := make([]*thread, 0, len(g.threads))
	for _, t := range g.threads {
		all = append(all, t)
	}
	g.mu.Unlock()
	g.throttle.open()
	for _, t := range all {
		t.interrupt()
	}
}

// Kill ends the guest at once.
func (g *Guest) Kill() { g.finish(End{Cause: hv.CauseStop, Message: "stopped on request"}) }

// Signal sends a Linux signal to the guest, as kill(2) does from outside.
func (g *Guest) Signal(sig int) error {
	if sig < 1 || sig > 64 {
		return fmt.Errorf("sys: no signal %d", sig)
	}
	g.signals.send(nil, siginfo{signo: sig})
	return nil
}

// Revoke replaces mapped memory, named by vfs's object number, by fresh zero pages. It is no error if it is not
// mapped.
func (g *Guest) Revoke(object uint64) error {
	_, err := g.space.Revoke(object)
	return err
}

func (g *Guest) ending() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.end != nil
}

// Stats counts what the guest did so far.
func (g *Guest) Stats() hv.Stats {
	g.mu.Lock()
	threads := len(g.threads)
	g.mu.Unlock()
	requests, bytes := g.cfg.Table.DevStats()
	return hv.Stats{
		Exits: g.exits.Load(), Syscalls: g.calls.Load(), Faults: g.faults.Load(), Threads: threads,
		MemoryBytes: g.space.Size(), MemoryUsed: g.space.Used(), DevRequests: requests, DevBytes: bytes,
		Calls: g.callCounts(), Memory: g.memoryState(),
	}
}

func (g *Guest) callCounts() map[string]uint64 {
	out := make(map[string]uint64)
	for nr := range g.byNumber {
		if n := g.byNumber[nr].Load(); n != 0 {
			out[SyscallName(uint64(nr))] = n
		}
	}
	return out
}

// Leader returns the number of the host thread that runs the guest's first thread; 0 before that runs.
func (g *Guest) Leader() int { return int(g.leader.Load()) }

// Fault returns the last fault that became a signal, or nil.
func (g *Guest) Fault() *hv.Fault {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fault
}

// Denied returns how often each system call that does not exist here was made, by name or number.
func (g *Guest) Denied() map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return deniedNames(g.denied)
}

// maxDenied bounds the table of calls that do not exist; numbers beyond it are counted as one.
const maxDenied = 512

func (g *Guest) deny(nr uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.denied[nr]; !ok && len(g.denied) >= maxDenied {
		nr = ^uint64(0)
	}
	g.denied[nr]++
}

// SyscallName returns Linux's name of a system call, or its number.
func SyscallName(nr uint64) string {
	if nr < uint64(len(syscallNames)) && syscallNames[nr] != "" {
		return syscallNames[nr]
	}
	return strconv.FormatUint(nr, 10)
}

// hostCPUs returns how many CPUs this process may run on.
func hostCPUs() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 1
	}
	return max(1, set.Count())
}
