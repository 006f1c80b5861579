package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// testpmd is a running DPDK testpmd with two vhost-user ports between which it passes frames on: the peer of the network benchmarks. Its one forwarding
// thread polls without end.
type testpmd struct {
	name    string
	sockets [2]string
	cmd     *exec.Cmd
	stdin   io.Closer // it ends when this does
	said    bytes.Buffer
}

// testpmdConfigs are what is tried to bring out the best of it.
var testpmdConfigs = []struct{ mode, burst string }{
	{"io", "32"}, // does not look at frames
	{"io", "64"},
}

// startTestpmd starts one and returns when it listens. It needs no huge pages: the frames that it holds are in its own memory, and the clients' are
// mapped from them.
func startTestpmd(dir string, index int) (*testpmd, error) {
	program, err := exec.LookPath("dpdk-testpmd")
	if err != nil {
		return nil, fmt.Errorf("%w: dpdk-testpmd is not installed (Debian: dpdk-dev)", errSkipped)
	}
	c := testpmdConfigs[index]
	t := &testpmd{name: "DPDK testpmd, forward mode " + c.mode + ", burst " + c.burst}
	args := []string{"--no-huge", "-m", "256", "--no-pci", "--no-telemetry", "--no-shconf", "--file-prefix=grail",
		// Both threads may run on any processor, as the switch may.
		"--lcores", fmt.Sprintf("0@(0-%d),1@(0-%d)", runtime.NumCPU()-1, runtime.NumCPU()-1), "--main-lcore", "0"}
	for i := range t.sockets {
		t.sockets[i] = filepath.Join(dir, fmt.Sprintf("pmd%d-%d.sock", index, i))
		args = append(args, fmt.Sprintf("--vdev=net_vhost%d,iface=%s,queues=1", i, t.sockets[i]))
	}
	args = append(args, "--", "--auto-start", "--forward-mode="+c.mode, "--burst="+c.burst, "--total-num-mbufs=8192", "--no-lsc-interrupt")
	t.cmd = exec.Command(program, args...)
	t.cmd.Stdout, t.cmd.Stderr = &t.said, &t.said
	// Its files go where the benchmark's are.
	t.cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir, "RUNTIME_DIRECTORY="+dir)
	if t.stdin, err = t.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := t.cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		if listening(t.sockets[0]) && listening(t.sockets[1]) {
			return t, nil
		}
		var st unix.WaitStatus
		if pid, _ := unix.Wait4(t.cmd.Process.Pid, &st, unix.WNOHANG, nil); pid != 0 || time.Now().After(deadline) {
			t.stop()
			lines := strings.Split(strings.TrimSpace(t.said.String()), "\n")
			return nil, fmt.Errorf("%s does not start: %s", t.name, lines[len(lines)-1])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// pause stops it where it is.
func (t *testpmd) pause() error { return t.cmd.Process.Signal(unix.SIGSTOP) }

func (t *testpmd) resume() error { return t.cmd.Process.Signal(unix.SIGCONT) }

func (t *testpmd) stop() {
	t.stdin.Close()
	_ = t.cmd.Process.Kill()
	_ = t.cmd.Wait()
}
