//go:build linux && amd64

package process

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Rule lets one system call run natively on the host kernel when every condition holds. Several rules
// for one number are alternatives.
type Rule struct {
	Nr   uint32
	When []Cond
}

// Cond is args[Arg] & Mask == Value, on all 64 bits. With Self set, Mask and Value are ignored and the low
// 32 bits of the argument must be the guest's own process id. Not inverts the test; Mask must then be within one
// 32-bit half.
type Cond struct {
	Arg   int
	Mask  uint64
	Value uint64
	Self  bool
	Not   bool
}

func (c Cond) bind(self uint32) Cond {
	if c.Self {
		return Cond{Arg: c.Arg, Mask: 0xffffffff, Value: uint64(self), Not: c.Not}
	}
	return c
}

// native reports whether rules let the call run on the host kernel; it mirrors the BPF program.
func native(rules []Rule, self uint32, nr uint64, args *[6]uint64) bool {
	for i := range rules {
		r := &rules[i]
		if uint64(r.Nr) == nr && !slices.ContainsFunc(r.When, func(c Cond) bool {
			c = c.bind(self)
			return (args[c.Arg]&c.Mask == c.Value) == c.Not
		}) {
			return true
		}
	}
	return false
}

// cloneThread are the flags that a clone must have to make a thread, cloneMay those it may have besides.
// Notably absent: CLONE_UNTRACED (would leave the tracer), CLONE_PIDFD (would make a descriptor), CLONE_NEW*,
// CLONE_VFORK, CLONE_PARENT.
const (
	cloneThread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD
	cloneMay    = unix.CLONE_SYSVSEM | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_SETTID |
		unix.CLONE_CHILD_CLEARTID | unix.CLONE_DETACHED
)

func makesThread(flags uint64) bool {
	return flags&cloneThread == cloneThread && flags&^(cloneThread|cloneMay) == 0
}

// DefaultNative returns the calls that run on the host kernel when Config.Native is nil: private memory and
// maps of installed descriptors, futexes, the guest's own signals, clocks, timers, sleeping, identity
// and random numbers. Each touches the guest's own address space, threads and timers only. clone is not in the
// list: thread creation is counted and then runs natively, any other clone is forwarded. Nor is the end of a program that fails, which runs
// natively once its memory has been looked at.
func DefaultNative() []Rule {
	var rules []Rule
	for _, nr := range []uint32{
		// The busiest first: kernels before 5.11 walk the list.
		unix.SYS_FUTEX, unix.SYS_CLOCK_GETTIME, unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_CLOCK_NANOSLEEP,
		unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGACTION, unix.SYS_SIGALTSTACK,
		unix.SYS_RT_SIGPENDING, unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_RT_SIGSUSPEND, unix.SYS_PAUSE,
		unix.SYS_RESTART_SYSCALL,
		unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_BRK, unix.SYS_MREMAP,
		unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_EXIT,
		unix.SYS_GETTIMEOFDAY, unix.SYS_TIME, unix.SYS_CLOCK_GETRES,
		unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETCPU,
		unix.SYS_SET_TID_ADDRESS, unix.SYS_SET_ROBUST_LIST, unix.SYS_GET_ROBUST_LIST, unix.SYS_FUTEX_WAITV,
		unix.SYS_SETITIMER, unix.SYS_GETITIMER, unix.SYS_ALARM,
		unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_GETTIME, unix.SYS_TIMER_GETOVERRUN,
		unix.SYS_TIMER_DELETE,
		unix.SYS_GETRANDOM, unix.SYS_MEMBARRIER,
	} {
		rules = append(rules, Rule{Nr: nr})
	}
	// A program that fails is looked at first: see accept.
	rules = append(rules, Rule{unix.SYS_EXIT_GROUP, []Cond{{Arg: 0, Mask: 0xff, Value: 0}}})
	// Shared anonymous memory escapes RLIMIT_DATA; huge and locked pages escape the reservation.
	const special = unix.MAP_ANONYMOUS | unix.MAP_HUGETLB | unix.MAP_LOCKED | unix.MAP_GROWSDOWN
	rules = append(rules,
		Rule{unix.SYS_MMAP, []Cond{{Arg: 3, Mask: special | unix.MAP_TYPE, Value: unix.MAP_ANONYMOUS | unix.MAP_PRIVATE}}},
		Rule{unix.SYS_MMAP, []Cond{{Arg: 3, Mask: special, Value: 0}}},
	)
	// No KSM (a side channel), no page poisoning, no holes punched into a grant.
	for _, advice := range []uint64{
		unix.MADV_DONTNEED, unix.MADV_FREE, unix.MADV_HUGEPAGE, unix.MADV_NOHUGEPAGE, unix.MADV_COLLAPSE,
		unix.MADV_NORMAL, unix.MADV_RANDOM, unix.MADV_SEQUENTIAL, unix.MADV_WILLNEED, unix.MADV_DONTFORK,
		unix.MADV_DOFORK, unix.MADV_DONTDUMP, unix.MADV_DODUMP, unix.MADV_COLD, unix.MADV_PAGEOUT,
		unix.MADV_POPULATE_READ, unix.MADV_POPULATE_WRITE,
	} {
		rules = append(rules, Rule{unix.SYS_MADVISE, []Cond{{Arg: 2, Mask: 0xffffffff, Value: advice}}})
	}
	// Signals to itself, except SIGKILL: the first process of a namespace would ignore that one (see accept).
	for nr, sigArg := range map[uint32]int{unix.SYS_TGKILL: 2, unix.SYS_KILL: 1, unix.SYS_RT_TGSIGQUEUEINFO: 2, unix.SYS_RT_SIGQUEUEINFO: 1} {
		rules = append(rules, Rule{nr, []Cond{{Arg: 0, Self: true}, {Arg: sigArg, Mask: 0xffffffff, Value: uint64(unix.SIGKILL), Not: true}}})
	}
	for _, code := range []uint64{archSetFS, archGetFS} {
		rules = append(rules, Rule{unix.SYS_ARCH_PRCTL, []Cond{{Arg: 0, Mask: 0xffffffff, Value: code}}})
	}
	return rules
}

// arch_prctl codes (asm/prctl.h).
const (
	archSetFS = 0x1002
	archGetFS = 0x1003
)
