package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What the writer does: workers goroutines use areaMiB of the disk.
const (
	workers = 4
	areaMiB = diskSize >> 20
	// forever is longer than any campaign.
	forever = 1000 * time.Hour
	// patience is how long the writer may take to start, and to end once it was told to.
	patience = time.Minute
)

// writer is the VM that writes and verifies.
type writer struct {
	c     *campaign
	cmd   *exec.Cmd
	msg   bytes.Buffer
	ended chan struct{} // closed when the VM has ended
	err   error         // how; valid once ended is closed

	// Valid once ended is closed.
	marks map[int]int // by worker: its last operation that an acknowledged flush covers
	last  string      // last line of its output
}

// start starts the VM and returns once it has flushed for the first time.
func (w *writer) start(ctx context.Context) error {
	w.ended, w.marks = make(chan struct{}), map[int]int{}
	args := append(w.c.args("run", "--rm", "--name", "writer", "--disk", driver+"/"+disk), "--", w.c.box.Program("examples/verify"),
		"-disk", disk, "-mib", strconv.Itoa(areaMiB), "-workers", strconv.Itoa(workers), "-seed", w.seed(), "-time", forever.String(), "-acks")
	w.cmd = w.c.box.Command(ctx, args...)
	w.cmd.Stderr = &w.msg
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := w.cmd.Start(); err != nil {
		return err
	}
	first := make(chan struct{})
	go func() {
		defer close(w.ended)
		var once sync.Once
		for s := bufio.NewScanner(out); s.Scan(); {
			var worker, op int
			if n, _ := fmt.Sscanf(s.Text(), "flushed %d %d", &worker, &op); n == 2 {
				w.marks[worker] = op
				once.Do(func() { close(first) })
				continue
			}
			w.last = s.Text()
		}
		if w.err = w.cmd.Wait(); w.err != nil {
			w.err = fmt.Errorf("the writer failed: %w: %s", w.err, strings.TrimSpace(w.msg.String()))
		}
	}()
	select {
	case <-first:
		return nil
	case <-w.ended:
		return errors.Join(w.err, errors.New("the writer ended at once"))
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("the writer did not flush within %v", patience), w.stop())
	}
}

func (w *writer) seed() string { return strconv.FormatUint(w.c.seed, 10) }

// stop ends the VM in order. Errors: the writer met one.
func (w *writer) stop() error {
	select {
	case <-w.ended:
	default:
		_ = w.cmd.Process.Signal(unix.SIGTERM) // grailctl passes it on
	}
	select {
	case <-w.ended:
	case <-time.After(patience):
		_ = w.cmd.Process.Kill()
		<-w.ended
		return fmt.Errorf("the writer did not end within %v after SIGTERM", patience)
	}
	if w.err == nil {
		w.c.say("%s", w.last)
	}
	return w.err
}

// check verifies, on the host, that the disk holds all that the writer was promised, and returns the verdict.
func (w *writer) check(ctx context.Context, image string) (string, error) {
	var marks []string
	for _, i := range slices.Sorted(maps.Keys(w.marks)) {
		marks = append(marks, fmt.Sprintf("%d:%d", i, w.marks[i]))
	}
	cmd := exec.CommandContext(ctx, w.c.box.Program("examples/verify"), "-check", "-image", image, "-mib", strconv.Itoa(areaMiB),
		"-workers", strconv.Itoa(workers), "-seed", w.seed(), "-flushed", strings.Join(marks, ","))
	b, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(b))
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, text)
	}
	return text, nil
}
