package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/grailos/grail/images/nested/plan"
)

// environment is what every step gets.
var environment = []string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp", "USER=root"}

// Bounds of what is kept of a step's output, and reported of it.
const (
	maxOutput   = 4 << 20
	maxReported = 128 << 10
)

// run runs one step to its end, or to the end of its time.
func run(s *plan.Step) plan.Result {
	fmt.Println("step:", s.Name)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.TimeoutSeconds)*time.Second)
	defer cancel()
	out := &tail{max: maxOutput}
	cmd := exec.CommandContext(ctx, s.Argv[0], s.Argv[1:]...)
	cmd.Dir = s.Dir
	cmd.Env = append(append([]string{}, environment...), s.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A Go program prints its goroutines' stacks on SIGQUIT; then it has a moment to do so.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	r := plan.Result{Name: s.Name, Seconds: time.Since(begin).Seconds()}
	switch {
	case ctx.Err() != nil:
		r.Error = fmt.Sprintf("not done after %d s", s.TimeoutSeconds)
	case errors.Is(err, exec.ErrWaitDelay): // its children hold on to the output; it has ended well
	case err != nil:
		r.Error = err.Error()
	}
	text := out.bytes()
	if s.GoTest {
		countTests(text, &r)
	}
	if r.Error != "" || !s.GoTest {
		r.Output = string(text[max(0, len(text)-maxReported):])
	}
	if err := os.Chdir("/"); err != nil {
		r.Error = err.Error()
	}
	return r
}

// tail keeps the last bytes written to it, at least max/2 of them.
type tail struct {
	max int
	b   []byte
}

// Write implements io.Writer. Package exec calls it from one goroutine, as both outputs are the same.
func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > t.max {
		t.b = append(t.b[:0], t.b[len(t.b)-t.max/2:]...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte { return t.b }
