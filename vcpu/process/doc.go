// Package process is the engine for machines without /dev/kvm: it runs an unmodified static ELF program
// as a jailed host process, under the same system-call subset as the KVM engine.
//
// # How it works
//
// Start re-executes the calling program (/proc/self/exe) in new user, pid, mount, network, ipc and uts
// namespaces. That child gives itself an empty read-only root, drops every capability, sets its limits and
// installs a seccomp filter; then it executes the guest program. The filter lets memory, threads, futexes,
// signals, clocks and timers run on the host kernel at native speed (DefaultNative is that list) and turns
// every other system call into a Call, which the supervisor receives from Next and answers with Return. The
// guest starts with no open descriptor at all; it gets one only when the supervisor installs it with
// Call.Install. A program that calls Start must call ChildMain first thing in main.
//
// # Who does what
//
// One locked OS thread per guest, the tracer, forks the guest, traces it and waits for it: it sees each
// signal before the guest does, each new thread and each end. It dies with the guest and the guest with it
// (PTRACE_O_EXITKILL and the parent-death signal). Next, Call and the memory methods may be used from any
// goroutine.
//
// # Signals and forwarded calls
//
// A forwarded call is seen once, and it ends before the signal that hit its thread is delivered. When a signal arrives
// for a thread whose call is with the supervisor, the tracer withholds it, restarts the call (the new
// notification is attached to the same Call) and closes the channel of Call.Interrupted. A supervisor that blocks on behalf of
// the guest watches that channel and ends the call with Return(Errno(EINTR)) or Restart; one that answers at once need not
// care. The withheld signals are sent again with tgkill at the end of the call, the tracer puts the result into the registers
// and the original siginfo back, and the handlers run at the return of the call.
//
// One race is the kernel's: a signal can win against an answer that the kernel has already taken, and the thread makes
// the call again. That is recognised by the numbers of the notifications (lostAnswer), except when calls of several
// threads are hit by signals within the same microseconds: then the call may be seen twice, never lost.
// Under a storm of 10,000 signals a second on four threads at once it was seen one to four times in 10^5 signals; with
// one thread under fire, never in 5·10^5 (TestSignalsDoNotRepeatCalls, GRAIL_PROCESS_CALLS=400000).
//
// Without ptrace none of this is possible: the filter then asks the kernel (5.19 or newer) to hold signals until
// the call returns (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV), Interrupted never fires, and crash reports
// have no registers. On older kernels without ptrace, a signal may make the guest repeat a call. Probe says which
// of these a machine offers.
//
// # What bounds the guest
//
// Writable private memory by RLIMIT_DATA, address space (and so page tables) by RLIMIT_AS, threads by counting
// clone, which is answered here and never reaches the supervisor, descriptors by RLIMIT_NOFILE. Resident memory
// and CPU time are the business of the cgroup in which the supervisor runs.
//
// # Cost
//
// BenchmarkStart and BenchmarkCalls, 2-core machine, Linux 6.18: a small Go program is executed 5.2 ms after Start and
// writes 6.7 ms after it; a forwarded call takes 6.3 µs (best cases; about three times that with both cores busy
// elsewhere). Native calls cost what they cost a host process. A signal costs a stop for the tracer, a new thread a forwarded
// call and two stops.
package process
