package hv

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes the test binary stand in for grailvm when it is started with a Spec.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[0] == "grailvm" {
		os.Exit(fakeVM())
	}
	os.Exit(m.Run())
}

// fakeVM answers on its report file what it found in its Spec, then waits for its console to close.
func fakeVM() int {
	var spec Spec
	if err := json.NewDecoder(os.NewFile(SpecFD, "spec")).Decode(&spec); err != nil {
		return 1
	}
	pid := os.Getpid()
	sid, _ := unix.Getsid(0)
	out := map[string]any{
		"name": spec.Name, "pid": pid, "session": sid == pid, "env": os.Environ(), "tag": os.Args[2],
		"program": readAll(spec.Program), "sealed": sealed(SpecFD),
	}
	report := os.NewFile(uintptr(spec.Report), "report")
	if json.NewEncoder(report).Encode(out) != nil {
		return 2
	}
	report.Close()
	_, _ = io.Copy(io.Discard, os.NewFile(uintptr(spec.Stdin), "stdin"))
	return 0
}

func readAll(fd int) string {
	b, _ := io.ReadAll(os.NewFile(uintptr(fd), ""))
	return string(b)
}

func sealed(fd int) bool {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	return err == nil && seals&unix.F_SEAL_WRITE != 0
}

func TestLaunch(t *testing.T) {
	t.Setenv("GRAILVM_TEST", "1")
	program, err := NewSealed("program", []byte("ELF"))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reportR.Close()
	stdinR, stdinW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdinW.Close()

	l := NewLaunch("/proc/self/exe", Personality, "web")
	l.Tag = "tag-1"
	l.Spec.Program = l.Add(program)
	l.Spec.Report = l.Add(reportW)
	l.Spec.Stdin = l.Add(stdinR)
	if n := l.Add(program); n != l.Spec.Program {
		t.Errorf("the same file got %d and %d", l.Spec.Program, n)
	}
	if l.Add(nil) != -1 || l.Spec.Files != -1 || l.Spec.HostStatus != -1 {
		t.Error("no file must be -1")
	}
	p, err := l.Start()
	if errors.Is(err, ErrNamespaces) {
		t.Skipf("needs namespaces: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	reportW.Close()
	stdinR.Close()

	var got struct {
		Name, Tag, Program string
		PID                int
		Session, Sealed    bool
		Env                []string
	}
	if err := json.NewDecoder(reportR).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.Name != "web" || got.Tag != "tag-1" || got.Program != "ELF" || !got.Session || !got.Sealed {
		t.Errorf("the new process saw %+v", got)
	}
	if got.PID != 1 {
		t.Errorf("PID %d, want 1 in a namespace of its own", got.PID)
	}
	if len(got.Env) != 1 || got.Env[0] != "GRAILVM_TEST=1" {
		t.Errorf("environment %q", got.Env)
	}

	if p.Ended() {
		t.Fatal("ended too early")
	}
	if err := p.Wait(time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Wait of a running process: %v", err)
	}
	again, err := OpenProcess(p.PID, p.StartTime())
	if err != nil {
		t.Fatalf("adopt: %v", err)
	}
	defer again.Close()
	tagged := func(tag string) func([]string) bool {
		return func(args []string) bool { return len(args) == 3 && args[2] == tag }
	}
	found, err := FindProcess(p.PID, tagged("tag-1"))
	if err != nil || found.StartTime() != p.StartTime() {
		t.Fatalf("find: %+v, %v", found, err)
	}
	found.Close()
	if _, err := FindProcess(p.PID, tagged("tag-2")); !errors.Is(err, ErrGone) {
		t.Errorf("find another: %v", err)
	}
	if _, err := OpenProcess(p.PID, p.StartTime()+1); !errors.Is(err, ErrGone) {
		t.Errorf("adopt with another start time: %v", err)
	}
	stdinW.Close()
	if err := again.Wait(10 * time.Second); err != nil {
		t.Error(err)
	}
	if err := p.Wait(10 * time.Second); err != nil {
		t.Error(err)
	}
	if !p.Ended() || !again.Ended() {
		t.Error("not ended")
	}
	if err := p.Kill(); err != nil {
		t.Errorf("kill of an ended process: %v", err)
	}
	if _, err := OpenProcess(p.PID, p.StartTime()); !errors.Is(err, ErrGone) {
		t.Errorf("adopt a reaped process: %v", err)
	}
}

func TestLaunchKill(t *testing.T) {
	stdinR, stdinW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdinW.Close()
	report, err := NewMemory("report", 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer report.Close()
	l := NewLaunch("/proc/self/exe", Driver, "blk0")
	l.Spec.Stdin = l.Add(stdinR)
	l.Spec.Report = l.Add(report)
	p, err := l.Start()
	if errors.Is(err, ErrNamespaces) {
		t.Skipf("needs namespaces: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	stdinR.Close()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(10 * time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestLaunchErrors(t *testing.T) {
	l := NewLaunch("/nonexistent/grailvm", Driver, "x")
	if _, err := l.Start(); err == nil || !strings.Contains(err.Error(), "/nonexistent/grailvm") {
		t.Errorf("missing program: %v", err)
	}
	f, _ := NewMemory("m", 4096)
	f.Close()
	l = NewLaunch("/proc/self/exe", Driver, "x")
	l.Add(f)
	if _, err := l.Start(); err == nil {
		t.Error("closed file accepted")
	}
}

func TestDoorbellStaysNonblocking(t *testing.T) {
	bell, err := NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	if _, err := rawFD(bell); err != nil {
		t.Fatal(err)
	}
	c, _ := bell.SyscallConn()
	_ = c.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags %#x, %v", flags, err)
		}
	})
}
