//go:build linux && amd64

package process

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestThreadsAreBounded(t *testing.T) {
	for _, noTrace := range []bool{false, true} {
		t.Run(fmt.Sprint("untraced=", noTrace), func(t *testing.T) {
			tries := map[bool]int{false: 10000, true: 1000}[noTrace]
			out, exit, _ := run(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "threads", strconv.Itoa(tries)}, MaxThreads: 100, NoTrace: noTrace})
			if want := fmt.Sprintf("made 99 failed %d\n", tries-99); out != want || !clean(exit) {
				t.Errorf("got %q, %+v; want %q", out, exit, want)
			}
		})
	}
}

func TestThreadCountReturns(t *testing.T) {
	// 300 threads in turn must not use up 4.
	out, exit, s := run(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "churn", "300"}, MaxThreads: 4})
	if out != "joined 300\n" || !clean(exit) || s.g.Threads() != 0 {
		t.Errorf("got %q, %+v, %d threads at the end", out, exit, s.g.Threads())
	}
}

func TestMemoryIsBounded(t *testing.T) {
	out, exit, _ := run(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "hog"}, MemoryBytes: 32 << 20})
	var mib, errno int
	if n, _ := fmt.Sscanf(out, "got %d MiB, %d", &mib, &errno); n != 2 || mib > 96 || mib < 32 || errno != int(unix.ENOMEM) || !clean(exit) {
		t.Errorf("got %q, %+v", out, exit)
	}
	for _, noTrace := range []bool{false, true} {
		out, exit, _ = run(t, Config{Program: goProgram(t), Argv: []string{"goguest", "hog"}, MemoryBytes: 64 << 20, NoTrace: noTrace})
		if exit.Code != 2 || exit.Signal != 0 { // the runtime's own end: "out of memory", or a fault where it does not check
			t.Errorf("Go guest: got %.200q, %+v", out, exit)
		}
		// The kernel looks at what there was before when memory is mapped over a reservation, as Go does it: so there may be one piece more.
		if exit.Data > 64<<20+MemorySlack+32<<20 || !exit.Near(64<<20) {
			t.Errorf("it had %d bytes at its end", exit.Data)
		}
	}
	out, exit, _ = run(t, Config{Program: goProgram(t), Argv: []string{"goguest", "nil"}, MemoryBytes: 256 << 20})
	if exit.Code != 2 || exit.Data == 0 || exit.Near(256<<20) {
		t.Errorf("one that fails with memory left: %.200q, %+v", out, exit)
	}
}

// What is near to a bound.
func TestNear(t *testing.T) {
	const bound = 64 << 20
	for data, want := range map[uint64]bool{0: false, bound: false, bound + MemorySlack: true, bound + MemorySlack - 8<<20: true, bound + MemorySlack - 8<<20 - 1: false} {
		if got := (&Exit{Data: data}).Near(bound); got != want {
			t.Errorf("%d bytes: %v", data, got)
		}
	}
	if (&Exit{Data: 1 << 40}).Near(0) {
		t.Error("near to no bound")
	}
}

func TestInstall(t *testing.T) {
	grant := memfd(t, 8192)
	if _, err := grant.WriteAt([]byte("from the host\x00"), 0); err != nil {
		t.Fatal(err)
	}
	s := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "grant"}}, nil)
	s.onNr[0x4710] = func(c *Call) {
		for _, bad := range []int{-1, DefaultMaxFiles, 1 << 30} {
			if err := c.Install(int(grant.Fd()), bad, true); !errors.Is(err, unix.EBADF) {
				t.Errorf("Install as %d: %v", bad, err)
			}
		}
		if err := c.Install(9999, 700, true); !errors.Is(err, unix.EBADF) {
			t.Errorf("Install of a closed descriptor: %v", err)
		}
		if err := c.Close(); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Close of another call: %v", err)
		}
		if err := c.Restart(); !errors.Is(err, ErrNotInterrupted) {
			t.Errorf("Restart: %v", err)
		}
		if err := c.Install(int(grant.Fd()), 700, true); err != nil {
			t.Error(err)
		}
		if !c.Valid() {
			t.Error("the call is over before its answer")
		}
		s.ret(c, 700)
		if c.Valid() {
			t.Error("the call waits after its answer")
		}
		if err := c.Return(0); !errors.Is(err, ErrAnswered) {
			t.Errorf("second answer: %v", err)
		}
		if err := c.Install(int(grant.Fd()), 701, true); !errors.Is(err, ErrAnswered) {
			t.Errorf("Install after the answer: %v", err)
		}
	}
	s.onNr[unix.SYS_CLOSE] = func(c *Call) {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	s.serve()
	if want := "grant at fd 700: from the host\nagain: -9\n"; s.out.String() != want {
		t.Errorf("got %q, want %q", s.out.String(), want)
	}
	got := make([]byte, 20)
	if _, err := grant.ReadAt(got, 4096); err != nil || string(got) != "written by the guest" {
		t.Errorf("grant holds %q, %v", got, err)
	}
}

// TestMemory uses the C guest's memory while it waits in a call.
func TestMemory(t *testing.T) {
	for _, file := range []bool{false, true} {
		t.Run(fmt.Sprint("by file=", file), func(t *testing.T) {
			s := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "block"}}, nil)
			go func() {
				defer s.g.Kill()
				s.await("ready")
				checkMemory(t, s.g, file)
			}()
			s.serve()
			s.g.Wait() // Next may end a moment before the memory is gone
			if _, err := s.g.ReadMem(0x400000, make([]byte, 4)); err != ErrGone {
				t.Errorf("memory of a dead guest: %v", err)
			}
		})
	}
}

func checkMemory(t *testing.T, g *Guest, file bool) {
	read := func(addr uint64, b []byte) (int, error) {
		if file {
			return g.transferFile(b, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, false)
		}
		return g.ReadMem(addr, b)
	}
	var low, high, stackTop uint64 // the first mapping and its end; the end of the stack
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", g.PID()))
	if err != nil {
		t.Error(err)
		return
	}
	for line := range strings.Lines(string(maps)) {
		var a, b uint64
		fmt.Sscanf(line, "%x-%x", &a, &b)
		if low == 0 {
			low, high = a, b
		}
		if a == high {
			high = b
		}
		if strings.Contains(line, "[stack]") {
			stackTop = b
		}
	}
	b := make([]byte, 8192)
	for _, test := range []struct {
		addr uint64
		n    int
		want int
		err  error
	}{
		{low, 4, 4, nil},
		{low, 0, 0, nil},
		{high - 8, 8, 8, nil},
		{high - 8, 9, 8, unix.EFAULT},
		{high - 4096, 8192, 4096, unix.EFAULT},
		{high, 1, 0, unix.EFAULT},
		{0, 1, 0, unix.EFAULT},
		{^uint64(0), 1, 0, unix.EFAULT},
		{1 << 63, 8, 0, unix.EFAULT},
		{1<<47 - 4096, 4096, 0, unix.EFAULT},
	} {
		if n, err := read(test.addr, b[:test.n]); n != test.want || err != test.err {
			t.Errorf("reading %d at %#x: %d, %v; want %d, %v", test.n, test.addr, n, err, test.want, test.err)
		}
	}
	if read(low, b[:4]); string(b[:4]) != elfMagic {
		t.Errorf("got %q at the start of the program", b[:4])
	}
	if file {
		return
	}
	if n, err := g.WriteMem(low, []byte("x")); n != 0 || err != unix.EFAULT {
		t.Errorf("writing read-only memory: %d, %v", n, err)
	}
	at := stackTop - 64
	if n, err := g.WriteSpans([]byte("abcdef\x00"), []Span{{at, 3}, {at + 16, 0}, {at + 3, 100}}); n != 7 || err != nil {
		t.Errorf("WriteSpans: %d, %v", n, err)
	}
	if got, err := g.ReadString(at, 100); got != "abcdef" || err != nil {
		t.Errorf("ReadString: %q, %v", got, err)
	}
	if _, err := g.ReadString(at, 6); err != unix.ENAMETOOLONG {
		t.Errorf("ReadString without room for the NUL: %v", err)
	}
	if _, err := g.WriteMem(stackTop-4, []byte("tail")); err != nil {
		t.Error(err)
	}
	if _, err := g.ReadString(stackTop-4, 100); err != unix.EFAULT {
		t.Errorf("ReadString off the end: %v", err)
	}
	got := make([]byte, 10)
	if n, err := g.ReadSpans(got, []Span{{at, 2}, {high, 3}, {at, 3}}); n != 2 || err != unix.EFAULT || string(got[:2]) != "ab" {
		t.Errorf("ReadSpans over a hole: %d, %v, %q", n, err, got)
	}
	many := make([]Span, 3000)
	for i := range many {
		many[i] = Span{at + uint64(i%6), 1}
	}
	big := make([]byte, len(many))
	if n, err := g.ReadSpans(big, many); n != len(big) || err != nil || !bytes.Equal(big[:12], []byte("abcdefabcdef")) {
		t.Errorf("3000 spans: %d, %v, %q", n, err, big[:12])
	}
}

const elfMagic = "\x7fELF"

func TestStartErrors(t *testing.T) {
	good := cProgram(t, "-static")
	image, err := os.ReadFile(good.Name())
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, change func([]byte) []byte) *os.File {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, change(bytes.Clone(image)), 0o644); err != nil {
			t.Fatal(err)
		}
		return open(t, path)
	}
	for _, test := range []struct {
		name string
		cfg  Config
		want error
	}{
		{"no program", Config{Argv: []string{"x"}}, errConfig},
		{"no arguments", Config{Program: good}, errConfig},
		{"NUL", Config{Program: good, Argv: []string{"x\x00y"}}, errConfig},
		{"negative", Config{Program: good, Argv: []string{"x"}, MaxThreads: -1}, errConfig},
		{"empty", Config{Program: file("empty", func(b []byte) []byte { return nil }), Argv: []string{"x"}}, ErrProgram},
		{"script", Config{Program: file("script", func(b []byte) []byte { return append([]byte("#!/bin/sh\n"), b...) }), Argv: []string{"x"}}, ErrProgram},
		{"arm", Config{Program: file("arm", func(b []byte) []byte { b[18] = 183; return b }), Argv: []string{"x"}}, ErrProgram},
		{"relocatable", Config{Program: file("rel", func(b []byte) []byte { b[16] = 1; return b }), Argv: []string{"x"}}, ErrProgram},
		{"headers", Config{Program: file("phoff", func(b []byte) []byte { binary.LittleEndian.PutUint64(b[32:], 1<<63); return b }), Argv: []string{"x"}}, ErrProgram},
		{"interpreter", Config{Program: file("interp", func(b []byte) []byte { b[64] = 3; return b }), Argv: []string{"x"}}, ErrProgram},
		{"directory", Config{Program: open(t, t.TempDir()), Argv: []string{"x"}}, ErrProgram},
		// A header that only the kernel finds wrong.
		{"phdr align", Config{Program: file("bad", func(b []byte) []byte {
			for i := range int(binary.LittleEndian.Uint16(b[56:])) {
				binary.LittleEndian.PutUint64(b[64+56*i+40:], 0) // memory sizes
			}
			return b
		}), Argv: []string{"x"}}, errProgram},
		{"arguments", Config{Program: good, Argv: []string{"x", strings.Repeat("y", 1<<20)}}, errProgram},
		{"clone native", Config{Program: good, Argv: []string{"x"}, Native: []Rule{{Nr: unix.SYS_CLONE}}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, err := Start(test.cfg)
			if err == nil {
				g.Close()
				t.Fatal("it started")
			}
			t.Log(err)
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("want %v", test.want)
			}
		})
	}
}

// TestProgramNotForOthers runs a program that the jailed user may not execute.
func TestProgramNotForOthers(t *testing.T) {
	image, err := os.ReadFile(cProgram(t, "-static").Name())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "private")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	out, exit, _ := run(t, Config{Program: open(t, path), Argv: []string{"cguest"}})
	if out != "hello from C, 1 arguments\n" || !clean(exit) {
		t.Errorf("got %q, %+v", out, exit)
	}
}

// TestModes runs a guest in each way to jail it that this user can have.
func TestModes(t *testing.T) {
	for _, m := range modes(true) {
		for _, noTrace := range []bool{false, true} {
			t.Run(fmt.Sprint(m.name, " untraced=", noTrace), func(t *testing.T) {
				saved := forceMode
				forceMode = &m
				defer func() { forceMode = saved }()
				out, exit, s := run(t, Config{Program: goProgram(t), Argv: []string{"goguest", "threads", "20"}, NoTrace: noTrace})
				if out != "joined 20\n" || !clean(exit) {
					t.Errorf("got %q, %+v", out, exit)
				}
				if s.g.Weak() == m.namespaces || s.g.Traced() == noTrace {
					t.Errorf("weak %v, traced %v", s.g.Weak(), s.g.Traced())
				}
				if out, exit, _ := run(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "pending"}, NoTrace: noTrace}); out != "waited 10\n" {
					t.Errorf("signals: got %q, %+v", out, exit)
				}
				if _, exit, _ := run(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "kill9"}, NoTrace: noTrace}); exit.Signal != unix.SIGKILL {
					t.Errorf("kill itself: got %+v", exit)
				}
			})
		}
	}
}

// TestJail looks at the guest from outside.
func TestJail(t *testing.T) {
	s := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "block"}, MemoryBytes: 4096, MaxFiles: 77}, nil)
	go func() {
		defer s.g.Kill()
		s.await("ready")
		dir := fmt.Sprintf("/proc/%d/", s.g.PID())
		status, err := os.ReadFile(dir + "status")
		if err != nil {
			t.Error(err)
		}
		if os.Geteuid() == 0 && (!strings.Contains(string(status), "Uid:\t65534\t65534\t65534\t65534\nGid:\t65534\t65534\t65534\t65534\n") ||
			!strings.Contains(string(status), "Groups:\t \n")) {
			t.Errorf("not nobody: %s, %s", s.g.Jail(), status)
		}
		for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapInh:\t0000000000000000", "CapPrm:\t0000000000000000",
			"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "Threads:\t1", "SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("no %q in %s", want, status)
			}
		}
		if fds, err := os.ReadDir(dir + "fd"); err != nil || len(fds) != 0 {
			t.Errorf("descriptors %v, %v", fds, err)
		}
		if mounts, err := os.ReadFile(dir + "mounts"); err != nil || strings.Count(string(mounts), "\n") != 1 || !strings.Contains(string(mounts), "ro,nosuid,nodev,noexec") {
			t.Errorf("mounts %q, %v", mounts, err)
		}
		if root, err := os.ReadDir(dir + "root"); err != nil || len(root) != 0 {
			t.Errorf("root %v, %v", root, err)
		}
		if env, err := os.ReadFile(dir + "environ"); err != nil || len(env) != 0 {
			t.Errorf("environment %q, %v", env, err)
		}
		for _, ns := range []string{"user", "pid", "mnt", "net", "ipc", "uts"} {
			mine, err1 := os.Readlink("/proc/self/ns/" + ns)
			its, err2 := os.Readlink(dir + "ns/" + ns)
			if mine == its || err1 != nil || err2 != nil {
				t.Errorf("namespace %s: %s and %s, %v, %v", ns, mine, its, err1, err2)
			}
		}
		lim, err := os.ReadFile(dir + "limits")
		for _, want := range []string{"Max open files 77 77", "Max core file size 0 0", "Max locked memory 0 0", fmt.Sprintf("Max data size %d", 4096+MemorySlack)} {
			if !strings.Contains(strings.Join(strings.Fields(string(lim)), " "), want) {
				t.Errorf("no %q in %s, %v", want, lim, err)
			}
		}
	}()
	s.serve()
	if exit := s.g.Wait(); !exit.Killed || exit.Signal != unix.SIGKILL {
		t.Errorf("got %+v", exit)
	}
}

func TestCloseEachOnExec(t *testing.T) {
	fd, err := unix.Dup(2) // without the flag
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := closeEachOnExec(); err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
}

// TestUnprivileged runs most of these tests again as nobody.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become nobody; the other tests ran unprivileged")
	}
	for _, f := range []*os.File{goProgram(t), cProgram(t, "-static"), cProgram(t, "-static-pie")} {
		f.Close()
	}
	// The test binary lies in a directory of root's: run a copy.
	image, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	binary := buildPath(t, "tests")
	if err := os.WriteFile(binary, image, 0o755); err != nil {
		t.Fatal(err)
	}
	temp := buildPath(t, "tmp")
	if err := errors.Join(os.MkdirAll(temp, 0o777), os.Chmod(temp, 0o777)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.v", "-test.run=^(TestProbe|TestGo.*|TestCGuests|TestHostile|TestFatal.*|TestSignal[EF].*|TestInstall|TestMemory|TestModes|TestJail|TestThreadCount.*)$")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + temp, prebuiltEnv + "=" + buildDir}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("does not work here")) {
		t.Skipf("not for unprivileged users on this machine:\n%s", out)
	}
	t.Logf("%d tests passed", bytes.Count(out, []byte("--- PASS")))
}

// TestGuestDiesWithSupervisor starts a supervisor of its own (this test binary) and kills it.
func TestGuestDiesWithSupervisor(t *testing.T) {
	if os.Getenv("GRAIL_PROCESS_SUPERVISOR") != "" {
		g, err := Start(Config{Program: open(t, os.Getenv("GRAIL_PROCESS_SUPERVISOR")), Argv: []string{"cguest", os.Getenv("GRAIL_PROCESS_WHAT")},
			NoTrace: os.Getenv("GRAIL_PROCESS_NOTRACE") != ""})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("guest", g.PID())
		for { // Serve nothing, until killed.
			if _, err := g.Next(); err == io.EOF {
				return
			}
		}
	}
	for _, what := range []string{"block", "spin"} {
		for _, noTrace := range []string{"", "1"} {
			t.Run(what+" untraced="+noTrace, func(t *testing.T) {
				cmd := exec.Command("/proc/self/exe", "-test.run=^TestGuestDiesWithSupervisor$", "-test.v")
				cmd.Env = append(os.Environ(), "GRAIL_PROCESS_SUPERVISOR="+cProgram(t, "-static").Name(), "GRAIL_PROCESS_WHAT="+what, "GRAIL_PROCESS_NOTRACE="+noTrace)
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				var text []byte
				pid := 0
				for pid == 0 {
					var b [1]byte
					if _, err := out.Read(b[:]); err != nil {
						t.Fatalf("supervisor: %v, %s", err, text)
					}
					text = append(text, b[0])
					if _, after, ok := strings.Cut(string(text), "guest "); ok && strings.HasSuffix(after, "\n") {
						pid, _ = strconv.Atoi(strings.TrimSpace(after))
					}
				}
				pidfd, err := unix.PidfdOpen(pid, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(pidfd)
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				cmd.Wait()
				if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 5000); n != 1 || err != nil {
					t.Errorf("guest %d lives on: %d, %v", pid, n, err)
				}
			})
		}
	}
}
