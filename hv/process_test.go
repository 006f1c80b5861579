package hv

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// headless makes the test binary a process whose first thread has ended.
const headless = "headless-test-process"

// Initialisation runs on the first thread.
func init() {
	if len(os.Args) != 2 || os.Args[1] != headless {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
}

// A killed process whose first thread has ended, and another not, has not ended: it is found, and waited for.
func TestFindProcessHeadless(t *testing.T) {
	cmd := exec.Command(os.Args[0], headless)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	proc := "/proc/" + strconv.Itoa(cmd.Process.Pid)
	for {
		b, err := os.ReadFile(proc + "/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.ReadFile(proc + "/task/" + strconv.Itoa(cmd.Process.Pid) + "/stat"); err == nil && len(b) == 0 && bytes.Contains(st, []byte(") Z ")) {
			break
		}
	}
	is := func(args []string) bool { return len(args) == 2 && args[1] == headless }
	p, err := FindProcess(cmd.Process.Pid, is)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Ended() {
		t.Fatal("it counts as ended")
	}
	if err := p.Wait(10 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("wait for a process that has not ended: %v", err)
	}
	stdin.Close()
	if err := p.Wait(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := FindProcess(cmd.Process.Pid, is); !errors.Is(err, ErrGone) {
		t.Errorf("find an ended process: %v", err)
	}
	p.Close()
	if err := p.Kill(); err != nil {
		t.Errorf("kill by a closed handle: %v", err)
	}
}
