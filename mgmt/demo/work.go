package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/sandbox"
)

// workers is how many files the program hashes at a time: enough to keep the driver busy from two processors.
const workers = "16"

// work is the personality VM at work, while its driver is crashed.
type work struct {
	d       *demo
	crashed int // crashes so far
}

// line is one line of the program's output.
type line struct {
	text string
	at   time.Time
}

// progress matches the program's progress, which counts files.
var progress = regexp.MustCompile(`^fshash: pass (\d+) of \d+: (\d+) of (\d+) files`)

// run runs the program to its end. It crashes the driver once in the middle of each pass.
func (w *work) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	args := []string{"run", "--rm", "--name", vmName, "--disk", driverName + "/src:ro", "--disk", driverName + "/out"}
	if w.d.engine != "" {
		args = append(args, "--engine", w.d.engine)
	}
	cmd := w.d.box.Command(ctx, append(args, "--", w.d.box.Program("examples/fshash"), "-workers", workers,
		"-passes", strconv.Itoa(len(sandbox.Hows)))...)
	var msg strings.Builder
	cmd.Stderr = &msg
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := make(chan line, 1024)
	go read(out, lines)
	err = w.follow(ctx, lines, begin)
	if err != nil {
		cancel()
	}
	for range lines { // the pipe must be read to its end before Wait
	}
	if end := cmd.Wait(); end != nil {
		text := strings.TrimSpace(msg.String())
		err = errors.Join(err, fmt.Errorf("the personality VM failed: %w: %s", end, text))
	}
	if err == nil && w.crashed < len(sandbox.Hows) {
		err = fmt.Errorf("the program ended after %d of %d crashes", w.crashed, len(sandbox.Hows))
	}
	return err
}

// read splits output into lines.
func read(r io.Reader, lines chan<- line) {
	defer close(lines)
	s := bufio.NewScanner(r)
	for s.Scan() {
		lines <- line{s.Text(), time.Now()}
	}
}

// follow reads the program's output and crashes the driver when its time has come.
func (w *work) follow(ctx context.Context, lines <-chan line, begin time.Time) error {
	first := true
	for l := range lines {
		if first {
			w.d.say("program VM", "%s, first output after %s", vmName, ms(l.at.Sub(begin)))
			first = false
		}
		if w.d.verbose {
			w.d.say("", "%s", l.text)
		}
		if m := progress.FindStringSubmatch(l.text); m != nil {
			pass, _ := strconv.Atoi(m[1])
			files, _ := strconv.Atoi(m[2])
			of, _ := strconv.Atoi(m[3])
			if pass > w.crashed && 2*files >= of && w.crashed < len(sandbox.Hows) {
				if err := w.crash(ctx, m[0]); err != nil {
					return err
				}
			}
		} else if text, ok := strings.CutPrefix(l.text, "fshash: "); ok && !w.d.verbose && !strings.HasPrefix(text, "started") {
			w.d.say("", "%s", text)
		}
	}
	return ctx.Err()
}

// crash crashes the driver, waits until its next instance serves, and tells about it.
func (w *work) crash(ctx context.Context, where string) error {
	how := sandbox.Hows[w.crashed]
	w.crashed++
	c, err := w.d.box.Crash(ctx, driverName, how)
	if err != nil {
		return fmt.Errorf("crash %d: %w", w.crashed, err)
	}
	w.tell(c, how, strings.TrimPrefix(where, "fshash: "))
	return nil
}

// tell prints what is known about a crash.
func (w *work) tell(c api.Crash, how, where string) {
	w.d.say(fmt.Sprintf("crash %d", w.crashed), "%-5s in %s; first request served again after %.0f ms", how, where, c.RecoverMs)
	t := c.Trace
	if t == nil {
		w.d.say("", "report: %s", c.Message)
		return
	}
	w.d.say("", "report: %s", t.What)
	w.d.say("", "  at    %s", t.Instruction)
	if len(t.Stack) > 0 {
		f := t.Stack[0]
		w.d.say("", "  in    %s, %s:%d", f.Func, f.File, f.Line)
	}
}
