package jail

import (
	"fmt"
	"os"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// runtimeCalls are what the Go runtime and grailvm's control thread need, whatever else the process does.
var runtimeCalls = []string{
	"futex", "nanosleep", "clock_nanosleep", "clock_gettime", "gettimeofday", "restart_syscall", "sched_yield",
	"sched_getaffinity", "getpid", "gettid", "getrusage", "getrandom",
	"munmap", "madvise", "mincore",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
	"exit", "exit_group",
	"read", "write", "pread64", "close", "fcntl", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "pipe2",
	"accept4", "recvmsg", "sendmsg", "getsockopt", "setsockopt", "shutdown",
}

// refused are calls that libraries make in passing: they fail with EPERM and need not end the VM.
var refused = []string{
	"open", "openat", "openat2", "stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat",
	"socket", "socketpair", "connect", "uname", "getcwd", "getuid", "getgid", "geteuid", "getegid", "getppid", "prlimit64", "getrlimit",
}

// Flags with which the Go runtime makes a thread (runtime/os_linux.go, sys_linux_amd64.s): a thread, never a process.
const (
	threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD
	prSetVMA    = 0x53564d41 // PR_SET_VMA: the runtime names its memory
)

// rule allows a call when one argument fits. The other calls of the same number meet the default.
type rule struct {
	nr     uint32
	arg    int
	values []uint64 // allowed when the argument is one of these
	never  uint32   // or, without values, when it has none of these bits
	refuse bool     // what does not fit fails with EPERM, instead of meeting the default
}

// policy is what a filter says, by system-call number.
type policy struct {
	rules   []rule // first: with KVM_RUN at the head, an exit costs a few instructions
	allowed []uint32
	refused []uint32
	other   uint32 // what becomes of everything else
}

// Verdicts of a filter (seccomp(2)).
const (
	verdictAllow  = unix.SECCOMP_RET_ALLOW
	verdictRefuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	verdictKill   = unix.SECCOMP_RET_KILL_PROCESS
	verdictLog    = unix.SECCOMP_RET_LOG
)

// newPolicy makes the allow-list for cfg.
func newPolicy(cfg *Config) (*policy, error) {
	p := &policy{other: verdictKill}
	if cfg.Log {
		p.other = verdictLog
	}
	requests := make([]uint64, 0, len(cfg.Ioctls))
	for _, r := range cfg.Ioctls {
		requests = append(requests, uint64(r))
	}
	p.rules = []rule{
		{nr: unix.SYS_IOCTL, arg: 1, values: requests},
		{nr: unix.SYS_MMAP, arg: 2, never: unix.PROT_EXEC},
		{nr: unix.SYS_MPROTECT, arg: 2, never: unix.PROT_EXEC},
		{nr: unix.SYS_CLONE, arg: 0, values: []uint64{threadFlags, threadFlags | unix.CLONE_SETTLS}},
		{nr: unix.SYS_PRCTL, arg: 0, values: []uint64{prSetVMA}},
	}
	if len(cfg.Domains) > 0 {
		r := rule{nr: unix.SYS_SOCKET, arg: 0, refuse: true}
		for _, d := range cfg.Domains {
			r.values = append(r.values, uint64(d))
		}
		p.rules = append(p.rules, r)
	}
	ruled := func(nr uint32) bool { return slices.ContainsFunc(p.rules, func(r rule) bool { return r.nr == nr }) }
	named, err := numbers(slices.Concat(runtimeCalls, cfg.Syscalls))
	if err != nil {
		return nil, err
	}
	for _, nr := range slices.Concat(named, cfg.Numbers) {
		if !ruled(nr) && !slices.Contains(p.allowed, nr) {
			p.allowed = append(p.allowed, nr)
		}
	}
	if !slices.Contains(p.allowed, unix.SYS_TGKILL) {
		p.rules = append(p.rules, rule{nr: unix.SYS_TGKILL, arg: 0, values: []uint64{uint64(os.Getpid())}})
	}
	if cfg.Log {
		return p, nil
	}
	if cfg.NoYield {
		p.allowed = slices.DeleteFunc(p.allowed, func(nr uint32) bool { return nr == unix.SYS_SCHED_YIELD })
		p.refused = append(p.refused, unix.SYS_SCHED_YIELD)
	}
	deny, err := numbers(refused)
	if err != nil {
		return nil, err
	}
	for _, nr := range deny {
		if !slices.Contains(p.allowed, nr) {
			p.refused = append(p.refused, nr)
		}
	}
	return p, nil
}

// numbers looks names up in the architecture's table.
func numbers(names []string) ([]uint32, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("jail: %w", err)
	}
	list := make([]uint32, 0, len(names))
	for _, n := range names {
		nr, ok := info.SyscallNames[n]
		if !ok {
			return nil, fmt.Errorf("jail: no system call is named %q", n)
		}
		list = append(list, uint32(nr))
	}
	return list, nil
}

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

// x32Bit marks the numbers of the x32 interface, which shares the architecture code with amd64.
const x32Bit = 0x40000000

// assemble compiles p. A call with a rule is decided where its number is found, and never compared further: what is in the
// accumulator is an argument then, which the caller chose. (go-seccomp-bpf 1.6.0 goes on comparing it with
// numbers, so that mmap with the protection 5 passes for fstat; only its table of names is used.)
func (p *policy) assemble() ([]bpf.RawInstruction, error) {
	ret := func(v uint32) bpf.Instruction { return bpf.RetConstant{Val: v} }
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 1},
		ret(p.other),
		bpf.LoadAbsolute{Off: dataNr, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: x32Bit, SkipFalse: 1},
		ret(p.other),
	}
	for i := range p.rules {
		body := p.rules[i].body(p.other)
		if len(body) > 255 {
			return nil, fmt.Errorf("jail: system call %d has too many rules", p.rules[i].nr)
		}
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: p.rules[i].nr, SkipFalse: uint8(len(body))})
		prog = append(prog, body...)
	}
	for _, set := range []struct {
		list    []uint32
		verdict uint32
	}{{p.allowed, verdictAllow}, {p.refused, verdictRefuse}} {
		for _, nr := range set.list {
			prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipFalse: 1}, ret(set.verdict))
		}
	}
	prog = append(prog, ret(p.other))
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("jail: the filter has %d instructions, the kernel takes %d", len(prog), unix.BPF_MAXINSNS)
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("jail: system-call filter: %w", err)
	}
	return raw, nil
}

// body decides a call of r's number; no path leaves it but by a verdict.
func (r *rule) body(other uint32) []bpf.Instruction {
	if r.refuse {
		other = verdictRefuse
	}
	lo := bpf.LoadAbsolute{Off: dataArgs + 8*uint32(r.arg), Size: 4}
	hi := bpf.LoadAbsolute{Off: lo.Off + 4, Size: 4}
	if r.values == nil {
		return []bpf.Instruction{
			lo,
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: r.never, SkipTrue: 1},
			bpf.RetConstant{Val: verdictAllow},
			bpf.RetConstant{Val: other},
		}
	}
	body := []bpf.Instruction{
		hi,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: other},
		lo,
	}
	for _, v := range r.values {
		body = append(body, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(v), SkipFalse: 1}, bpf.RetConstant{Val: verdictAllow})
	}
	return append(body, bpf.RetConstant{Val: other})
}
