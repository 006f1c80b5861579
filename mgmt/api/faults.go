package api

import "github.com/grailos/grail/hv"

// Options that several kinds have.
var (
	optTimes  = FaultOption{"n", "1", "how many times it strikes"}
	optChance = FaultOption{"p", "1", "the chance of each occasion, above 0 up to 1"}
	optCall   = FaultOption{"call", "any", "the number of the system call that it strikes"}
	optBits   = FaultOption{"bits", "1", "how many bits, up to 64"}
	optOp     = FaultOption{"op", "any", "read, write or flush"}
	optMs     = FaultOption{"ms", "200", "by how much, in milliseconds"}
	optSide   = FaultOption{"side", "both", "kick (from client to driver) or call (from driver to client)"}
	optClient = FaultOption{"client", "one of them, by seed", "the name of the client"}
)

// exception describes a fault of the CPU.
func exception(name, what string) FaultKind {
	return FaultKind{Name: "exception:" + name, VM: true, Summary: "a thread takes " + what}
}

// FaultKinds are the faults that can be injected, in the order in which they are shown.
var FaultKinds = []FaultKind{
	{Name: "kill", VM: true, Summary: "the program in the VM gets SIGKILL"},
	{Name: "vmm:kill", VM: true, Summary: "the process that runs the VM gets SIGKILL"},

	exception("de", "#DE: it divides by zero"),
	exception("db", "#DB: it is single-stepped"),
	exception("bp", "#BP: it executes a breakpoint"),
	exception("of", "#OF: it executes INT 4"),
	exception("br", "#BR, bound range (emulated: no instruction of 64-bit user mode raises it)"),
	exception("ud", "#UD: it executes an invalid instruction"),
	exception("nm", "#NM, no FPU (emulated: the FPU is there)"),
	exception("np", "#NP, segment not present (emulated: all segments are present)"),
	exception("ss", "#SS: it pushes to a stack at a non-canonical address"),
	exception("gp", "#GP: it executes a privileged instruction"),
	exception("pf", "#PF: it writes where nothing is"),
	exception("mf", "#MF: an x87 exception that is not masked"),
	exception("ac", "#AC: it reads an unaligned word with RFLAGS.AC"),
	exception("xm", "#XM: an SSE exception that is not masked"),

	{Name: "flip:code", VM: true, Silent: true, Summary: "bits of the program's code flip, in the VM's own copy of the page", Options: []FaultOption{optBits}},
	{Name: "flip:data", VM: true, Silent: true, Summary: "bits of memory flip that the program may write and has touched", Options: []FaultOption{optBits}},
	{Name: "flip:stack", VM: true, Silent: true, Summary: "bits of a thread's stack flip, of the 4 KiB from its stack pointer on", Options: []FaultOption{optBits}},
	{Name: "flip:registers", VM: true, Silent: true, Summary: "bits of a thread's general registers, instruction pointer or flags flip", Options: []FaultOption{optBits}},

	{Name: "syscall:fail", VM: true, Summary: "the next system calls fail (engine process: of those that Grail serves)", Options: []FaultOption{optTimes, optChance, optCall,
		{"errno", "one that Linux could give", "the error, such as EIO"}}},
	{Name: "syscall:delay", VM: true, Summary: "the next system calls are late (engine process: of those that Grail serves)", Options: []FaultOption{optTimes, optChance, optCall,
		{"ms", "20", "by how much, in milliseconds; beyond the driver's heartbeat it is a hang"}}},

	{Name: "io:error", Summary: "the next device operations fail", Options: []FaultOption{optTimes, optChance, optOp,
		{"errno", "EIO", "the error"}, {"transient", "0", "1: EINTR or EAGAIN, by seed, which the driver is to try again"}}},
	{Name: "io:short", Drivers: []string{"blk"}, Summary: "the next device operations do only a part of what they were asked for", Options: []FaultOption{optTimes, optChance, optOp}},
	{Name: "io:enospc", Summary: "the next writes to a device find it full", Options: []FaultOption{optTimes, optChance}},
	{Name: "io:slow", Summary: "the next device operations are late", Options: []FaultOption{optTimes, optChance, optOp, optMs}},

	{Name: "ring:driver", Drivers: []string{"blk", "net"}, Summary: "the driver breaks the rules of its rings or logs, until it is replaced", Options: []FaultOption{{"lie", "one of them, by seed", "how; see docs/abi.md"}}},
	{Name: "ring:client", Drivers: []string{"blk", "net"}, Summary: "one of its clients breaks the rules of its ring", Options: []FaultOption{optClient, {"lie", "one of them, by seed", "index, loop, address, length, head or wild"}}},

	{Name: "bell:lost", VM: true, Summary: "the next rings of doorbells are lost", Options: []FaultOption{optTimes, optChance, optSide}},
	{Name: "bell:double", VM: true, Summary: "the next rings of doorbells come twice", Options: []FaultOption{optTimes, optChance, optSide}},
	{Name: "bell:storm", Summary: "all doorbells are rung again and again", Options: []FaultOption{optSide,
		{"ms", "1000", "for how long, in milliseconds, up to 60000"}, {"rate", "20000", "rings a second of each, up to 1000000"}}},

	{Name: "memory", Summary: "the program uses up the VM's memory", Options: []FaultOption{
		{"from", "program", "vmm: the VMM takes it away instead (engine kvm)"}, {"leave", "0", "bytes that the VMM leaves"}}},

	{Name: "hang:loop", Summary: "the program loops for ever, with requests in hand"},
	{Name: "hang:syscall", VM: true, Summary: "a system call of the program never returns", Options: []FaultOption{optCall}},
	{Name: "hang:deadlock", Summary: "two threads of the program wait for each other's lock for ever"},
	{Name: "stall", Summary: "the program beats, but leaves what it took lying"},

	{Name: "clock", VM: true, Engines: []hv.Engine{hv.EngineKVM}, Summary: "the VM's clocks jump, and stay wrong", Options: []FaultOption{
		{"by", "forward or backward by seconds or hours, by seed", "how far, such as 90s or -2h"}, {"of", "both", "realtime: the real time alone"}}},
}
