//go:build linux && amd64

package process

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// goRuntimeSyscalls are what a running Go program makes of its own, and this test to print.
var goRuntimeSyscalls = []uint32{
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_CLOCK_GETTIME, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK,
	unix.SYS_RT_SIGRETURN, unix.SYS_RESTART_SYSCALL, unix.SYS_SIGALTSTACK, unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MADVISE,
	unix.SYS_MPROTECT, unix.SYS_PRCTL, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_CTL,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EVENTFD2, unix.SYS_WRITE, unix.SYS_READ, unix.SYS_FCNTL, unix.SYS_SCHED_GETAFFINITY,
	unix.SYS_ARCH_PRCTL, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_UNLINKAT, // unlinkat: the test's temporary directory
}

// jailSupervisor lets every thread of this process make only SupervisorSyscalls and the Go runtime's.
func jailSupervisor(t *testing.T) {
	var rules []Rule
	for _, nr := range append(append([]uint32{}, SupervisorSyscalls...), goRuntimeSyscalls...) {
		if nr != unix.SYS_PTRACE {
			rules = append(rules, Rule{Nr: nr})
		}
	}
	prog, err := filter(rules, 1)
	if err != nil {
		t.Fatal(err)
	}
	// Make it an allow-list: what it would forward traps instead, except for ptrace and clone.
	last := len(prog) - 1
	tail := prog[last]
	prog = prog[:last]
	for _, nr := range []uint32{unix.SYS_PTRACE, unix.SYS_CLONE} {
		jump, allow := tail, tail
		jump.Op, jump.Jt, jump.Jf, jump.K = unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, nr
		allow.K = unix.SECCOMP_RET_ALLOW
		prog = append(prog, jump, allow)
	}
	tail.K = unix.SECCOMP_RET_TRAP
	prog = append(prog, tail)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: (*unix.SockFilter)(unsafe.Pointer(&prog[0]))}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog))); errno != 0 {
		t.Fatalf("jailing the supervisor: %v", errno)
	}
}

// TestJailedSupervisor serves guests from a process that can make no other system calls than the documented.
func TestJailedSupervisor(t *testing.T) {
	if os.Getenv("GRAIL_PROCESS_JAILED") != "" {
		start1 := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "segv"}}, []byte{})
		start2 := start(t, Config{Program: goProgram(t), Argv: []string{"goguest", "threads", "30"}}, []byte{})
		start3 := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "once", "2000"}}, []byte{})
		start4 := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "grant"}}, []byte{})
		(&counter{t: t}).attach(start3)
		grant := memfd(t, 8192)
		start4.onNr[0x4710] = func(c *Call) {
			if err := c.Install(int(grant.Fd()), 9, true); err != nil {
				t.Error(err)
			}
			s := start4
			s.ret(c, 9)
		}
		jailSupervisor(t)
		for _, s := range []*supervisor{start1, start2, start3, start4} {
			s.serve()
			exit := s.g.Wait()
			t.Logf("%q %v %d", s.out.String(), exit.Signal, exit.Code)
			if s == start1 && (exit.Crash == nil || len(exit.Crash.Frames) < 2 || len(exit.Crash.Code) == 0) {
				t.Errorf("crash report %+v", exit.Crash)
			}
			if err := s.g.Close(); err != nil {
				t.Error(err)
			}
		}
		return
	}
	goProgram(t)
	cProgram(t, "-static")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestJailedSupervisor$", "-test.v")
	cmd.Env = append(os.Environ(), "GRAIL_PROCESS_JAILED=1", prebuiltEnv+"="+buildDir)
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "does not work here") {
		t.Skip(string(out))
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"segmentation fault", `"joined 30\n"`, `"bad 0 wrong 0 interrupted`, "grant at fd 9"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
}
