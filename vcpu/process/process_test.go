//go:build linux && amd64

package process

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProbe(t *testing.T) {
	s, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", s)
	if !s.Works {
		t.Skipf("engine process does not work here: %v", s.Missing)
	}
}

func TestGoGuests(t *testing.T) {
	for _, test := range []struct {
		args []string
		out  string
		code int
	}{
		{[]string{"hello"}, "hello, world\n", 0},
		{[]string{"args", "a", "b c", "\xff"}, `["a" "b c" "\xff"] ["K=V" "E="] pid=1` + "\n", 7},
		{[]string{"gc", "1"}, "collected true\n", 0},
		{[]string{"timers", "30"}, "ticked true true\n", 0},
		{[]string{"threads", "100"}, "joined 100\n", 0},
		{[]string{"deep", "100000"}, "100000\n", 0},
		{[]string{"file"}, "open /etc/passwd: no such file or directory\n", 0},
		{[]string{"echo"}, "", 0},
	} {
		t.Run(test.args[0], func(t *testing.T) {
			out, exit, _ := run(t, Config{Program: goProgram(t), Argv: append([]string{"goguest"}, test.args...), Env: []string{"K=V", "E="}})
			if out != test.out || exit.Code != test.code || exit.Signal != 0 {
				t.Errorf("got %q, %+v; want %q, code %d", out, exit, test.out, test.code)
			}
		})
	}
}

func TestGoPanic(t *testing.T) {
	out, exit, _ := run(t, Config{Program: goProgram(t), Argv: []string{"goguest", "nil"}})
	if exit.Code != 2 || exit.Signal != 0 || !strings.Contains(out, "nil pointer dereference") || !strings.Contains(out, "main.main()") {
		t.Errorf("got %q, %+v", out, exit)
	}
}

func TestGoSignal(t *testing.T) {
	s := start(t, Config{Program: goProgram(t), Argv: []string{"goguest", "sigterm"}}, nil)
	go func() {
		s.await("ready")
		if err := s.g.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
	}()
	s.serve()
	if exit := s.g.Wait(); s.out.String() != "ready\ngot terminated\n" || !clean(exit) {
		t.Errorf("got %q, %+v", s.out.String(), exit)
	}
}

func TestCGuests(t *testing.T) {
	for _, flags := range []string{"-static", "-static-pie"} {
		for _, test := range []struct{ args, out string }{
			{"hello x y", "hello from C, 4 arguments\n"},
			{"churn 200", "joined 200\n"},
			{"pending", "waited 10\n"},
			{"clone-fault", "-38\n"},
		} {
			t.Run(flags+" "+test.args, func(t *testing.T) {
				out, exit, _ := run(t, Config{Program: cProgram(t, flags), Argv: append([]string{"cguest"}, strings.Fields(test.args)...)})
				if out != test.out || !clean(exit) {
					t.Errorf("got %q, %+v; want %q", out, exit, test.out)
				}
			})
		}
	}
}

func TestHostile(t *testing.T) {
	out, exit, s := run(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "hostile"}, MemoryBytes: 64 << 20})
	want := map[string]string{
		"openat": "-2", "open": "-2", "dead-fd": "-9", "descriptors": "0", "enormous": "-12", "wrap": "-12", "kernel": "-12",
	}
	n := 0
	for line := range strings.Lines(out) {
		name, val, _ := strings.Cut(strings.TrimSpace(line), "=")
		n++
		expect, ok := want[name]
		if !ok {
			expect = "-38" // ENOSYS
		}
		if val != expect {
			t.Errorf("%s gave %s, want %s", name, val, expect)
		}
	}
	if n != 36 || !clean(exit) {
		t.Errorf("%d lines, %+v; want 36: %s", n, exit, out)
	}
	for _, nr := range []int{unix.SYS_CLONE3, unix.SYS_GETPID} {
		if s.seen[nr] != 0 {
			t.Errorf("call %d reached the supervisor", nr)
		}
	}
}

func TestFatalSignals(t *testing.T) {
	for _, test := range []struct {
		what   string
		signal unix.Signal
		addr   uint64
	}{
		{"segv", unix.SIGSEGV, 0x1234560},
		{"jump", unix.SIGSEGV, 0x123450000},
		{"abort", unix.SIGABRT, 0},
		{"ud2", unix.SIGILL, 0},
		{"hlt", unix.SIGSEGV, 0},
		{"fpe", unix.SIGFPE, 0},
		{"int80", unix.SIGSYS, 0},
		{"kill9", unix.SIGKILL, 0},
		{"term", unix.SIGTERM, 0},
		{"stack 16000000", unix.SIGSEGV, 0},
	} {
		for _, noTrace := range []bool{false, true} {
			t.Run(fmt.Sprint(test.what, " untraced=", noTrace), func(t *testing.T) {
				if noTrace && (test.what == "abort" || test.what == "term") {
					t.Skip("the first process of a namespace ignores its own signals; only the tracer can help")
				}
				out, exit, s := run(t, Config{Program: cProgram(t, "-static"), Argv: append([]string{"cguest"}, strings.Fields(test.what)...), NoTrace: noTrace})
				if exit.Signal != test.signal || exit.Code != 0 || out != "" || exit.Killed {
					t.Fatalf("got %q, %+v; want %v", out, exit, test.signal)
				}
				if !s.g.Traced() || test.what == "kill9" {
					return
				}
				crash := exit.Crash
				if crash == nil {
					t.Fatal("no crash report")
				}
				if test.addr != 0 && crash.Addr != test.addr {
					t.Errorf("fault at %#x, want %#x", crash.Addr, test.addr)
				}
				if test.what == "segv" {
					if len(crash.Frames) < 2 || crash.Regs.Rip-crash.CodeAddr != codeBefore || len(crash.Code) != codeBefore+codeAfter || len(crash.Stack) == 0 {
						t.Errorf("report %+v", crash)
					}
				}
				if test.what == "jump" && (len(crash.Code) != 0 || crash.Regs.Rip != test.addr) {
					t.Errorf("report %+v", crash)
				}
			})
		}
	}
}

// clean reports an end with code 0.
func clean(e Exit) bool {
	return e.Code == 0 && e.Signal == 0 && !e.Killed && e.Crash == nil && e.Threads == nil
}
