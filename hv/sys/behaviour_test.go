package sys

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
)

// The vDSO's clocks never run backwards, follow the host's, and take no exit.
func TestClock(t *testing.T) {
	r := run(t, 64<<20, build(t, `package main
import ("fmt"; "os"; "runtime"; "syscall"; "time"; "unsafe")
func host(id int) int64 {
	var ts syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, uintptr(id), uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}
func main() {
	last, n := time.Duration(0), 0
	var start time.Time
	var base int64
	for { // until the two begin together
		start, base = time.Now(), host(1)
		if time.Since(start) < time.Millisecond { break }
	}
	for last < 2500*time.Millisecond {
		for range 1000 {
			d := time.Since(start); n++
			if d < last { fmt.Println("monotonic ran backwards by", last-d); os.Exit(1) }
			last = d
		}
		runtime.Gosched()
	}
	// What lies between two readings may be a pause of the whole machine: the host's clock is read between two of ours.
	const most = 5*time.Millisecond
	before, h, after := time.Since(start), time.Duration(host(1)-base), time.Since(start)
	if h < before-most || h > after+most { fmt.Println("monotonic", h, "off", before, after); os.Exit(1) }
	from, w, to := time.Now().UnixNano(), host(0), time.Now().UnixNano()
	if w < from-int64(most) || w > to+int64(most) { fmt.Println("wall clock", w, "off", from, to); os.Exit(1) }
	if n < 100000 { fmt.Println("only", n, "readings") }
	fmt.Println("ok")
}`))
	if r.Cause != hv.CauseExit || r.Code != 0 || r.out != "ok\n" {
		t.Fatalf("%v, output %q", r.End, r.out)
	}
	if calls := r.guest.Stats().Calls["clock_gettime"]; calls > 1000 {
		t.Errorf("%d calls of clock_gettime: the vDSO is not used", calls)
	}
}

// A program's own sleep ends when it is to end, though the runtime's monitor is let sleep longer.
func TestSleepEndsInTime(t *testing.T) {
	r := run(t, 64<<20, build(t, `package main
import ("fmt"; "os"; "syscall"; "time"; "unsafe")
func main() {
	least := time.Hour
	for range 50 {
		ts := syscall.NsecToTimespec(1500000)
		begin := time.Now()
		if _, _, err := syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0); err == 0 { // no signal
			least = min(least, time.Since(begin))
		}
	}
	if least < 1500*time.Microsecond || least > 3*time.Millisecond { fmt.Println("slept", least, "of 1.5ms at least"); os.Exit(1) }
}`))
	if r.Cause != hv.CauseExit || r.Code != 0 {
		t.Fatalf("%v, output %q", r.End, r.out)
	}
}

func TestGoMonitorsSleeps(t *testing.T) {
	for d, want := range map[time.Duration]bool{
		20 * time.Microsecond: true, 5120 * time.Microsecond: true, 10 * time.Millisecond: true,
		0: false, 3 * time.Microsecond: false, 10240 * time.Microsecond: false, 30 * time.Microsecond: false, 20 * time.Millisecond: false,
	} {
		if got := ofGoMonitor(d); got != want {
			t.Errorf("%v: %v", d, got)
		}
	}
}

func TestMemoryReservation(t *testing.T) {
	r := run(t, 32<<20, build(t, `package main
func main() { var all [][]byte; for { b := make([]byte, 1<<20); for i := range b { b[i] = 1 }; all = append(all, b) } }`))
	if r.Cause != hv.CauseMemory || !strings.Contains(r.Message, "32 MiB") {
		t.Fatalf("%v", r.End)
	}
	if s := r.guest.Stats(); s.MemoryUsed > 32<<20 {
		t.Errorf("%d bytes handed out", s.MemoryUsed)
	}
}

func TestUnhandledSignal(t *testing.T) {
	r := run(t, 64<<20, build(t, `package main
import "syscall"
func main() { syscall.Kill(syscall.Getpid(), syscall.SIGKILL); select {} }`))
	if r.Cause != hv.CauseSignal || r.Signal != int(unix.SIGKILL) {
		t.Fatalf("%v", r.End)
	}
}

func TestSignalFromOutside(t *testing.T) {
	r := runWith(t, 64<<20, func(g *Guest) {
		if err := g.Signal(99); err == nil {
			t.Error("signal 99 was sent")
		}
		// Pending before the first instruction; the Go program's default for SIGTERM is to end.
		if err := g.Signal(int(unix.SIGTERM)); err != nil {
			t.Error(err)
		}
	}, build(t, `package main
func main() { select {} }`))
	if r.Cause != hv.CauseSignal && !(r.Cause == hv.CauseExit && r.Code == 2) || r.Cause == hv.CauseSignal && r.Signal != int(unix.SIGTERM) {
		t.Fatalf("%v, output %q", r.End, r.out)
	}
}

func TestDeniedCallsAreCounted(t *testing.T) {
	r := run(t, 64<<20, build(t, `package main
import ("fmt"; "syscall")
func main() {
	_, _, e := syscall.RawSyscall(syscall.SYS_SOCKET, 1, 1, 0)
	_, _, f := syscall.RawSyscall(syscall.SYS_FORK, 0, 0, 0)
	_, _, n := syscall.RawSyscall(99999, 0, 0, 0)
	fmt.Println(e == syscall.ENOSYS, f == syscall.ENOSYS, n == syscall.ENOSYS)
}`))
	d := r.guest.Denied()
	if r.out != "true true true\n" || d["socket"] != 1 || d["fork"] != 1 || d["99999"] != 1 {
		t.Fatalf("output %q, denied %v", r.out, d)
	}
}

func TestBadPrograms(t *testing.T) {
	for _, name := range []string{"/bin/sh", "/etc/passwd", "/dev/null"} {
		if r := run(t, 32<<20, name); r.Cause != hv.CauseSetup || r.Message == "" {
			t.Errorf("%s: %v", name, r.End)
		}
	}
}
