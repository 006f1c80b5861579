package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/grailos/grail/mgmt/api"
)

// client is a personality VM that uses a driver and answers probes: examples/verify or examples/netcheck with commands on its standard input.
type client struct {
	r      *rig
	name   string
	driver string
	cfg    api.VMConfig
	silent bool // it takes no commands

	in      *os.File
	ended   chan struct{} // closed when its output has ended
	started int           // generation of the run

	mu      sync.Mutex
	asked   int
	answers map[string]chan []string // by "VERB N"
	errs    []string                 // requests that were refused, since the last fault
	bads    []string                 // data that is not what it must be, since the last fault
	said    []string                 // lines that were not looked for in its log yet; of the rig's writer only
	logged  []string                 // lines of its log that it was not seen to print yet
	table   []string                 // lines of a table that is being printed
	tail    []string                 // last lines
}

// maxTail bounds the lines that are kept as evidence.
const maxTail = 40

// start makes the VM and returns when it is at work.
func (c *client) start(ctx context.Context) error {
	in, inW, err := os.Pipe()
	if err != nil {
		return err
	}
	outR, out, err := os.Pipe()
	if err != nil {
		in.Close()
		inW.Close()
		return err
	}
	program, err := os.Open(c.cfg.Program)
	if err == nil {
		err = c.run(ctx, map[api.Role]*os.File{api.RoleProgram: program, api.RoleStdin: in, api.RoleStdout: out, api.RoleStderr: out})
		program.Close()
	}
	in.Close()
	out.Close()
	if err != nil {
		inW.Close()
		outR.Close()
		return err
	}
	c.in, c.ended = inW, make(chan struct{})
	c.mu.Lock()
	c.answers = map[string]chan []string{}
	ready := make(chan []string, 1)
	c.answers["ready"] = ready
	c.mu.Unlock()
	go c.listen(outR)
	if c.silent {
		return nil
	}
	select {
	case <-ready:
		return nil
	case <-c.ended:
		return fmt.Errorf("VM %s ended at once: %s", c.name, c.why(ctx))
	case <-ctx.Done():
		return fmt.Errorf("VM %s is not ready: %w", c.name, ctx.Err())
	}
}

// run makes the VM if there is none, and starts it.
func (c *client) run(ctx context.Context, files map[api.Role]*os.File) error {
	ticket, release, err := api.HandOver(c.r.box.Dirs().Handover(), files)
	if err != nil {
		return err
	}
	defer release()
	start := api.StartVM{Ticket: ticket, Wait: true}
	var v api.VM
	if c.started == 0 {
		v, err = c.r.api.CreateVM(ctx, api.CreateVM{Config: c.cfg, Start: &start})
	} else {
		v, err = c.r.api.StartVM(ctx, c.name, start)
	}
	if err == nil {
		c.started = v.Generation
	}
	return err
}

// listen takes the VM's lines until there are no more.
func (c *client) listen(out *os.File) {
	defer out.Close()
	defer close(c.ended)
	for s := bufio.NewScanner(out); s.Scan(); {
		c.take(s.Text())
	}
}

func (c *client) take(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tail = append(c.tail, line); len(c.tail) > 2*maxTail {
		c.tail = append(c.tail[:0], c.tail[maxTail:]...)
	}
	if c == c.r.writer {
		c.said = append(c.said, line)
	}
	f := strings.Fields(line)
	if len(f) == 0 {
		return
	}
	switch f[0] {
	case "error":
		c.errs = append(c.errs, strings.TrimPrefix(line, "error "))
	case "bad":
		c.bads = append(c.bads, strings.TrimPrefix(line, "bad "))
	case "block":
		c.table = append(c.table, line)
	default:
		key := strings.Join(f[:min(2, len(f))], " ")
		if ch := c.answers[key]; ch != nil {
			delete(c.answers, key)
			ch <- f
		}
	}
}

// tell gives a command that is not answered.
func (c *client) tell(command string) {
	// The guest reads its commands whatever its drivers do; one that does not is found out by the next probe.
	_ = c.in.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.in.WriteString(command + "\n")
}

// pace lets the VM make a request each so often; 0: none.
func (c *client) pace(d time.Duration) { c.tell(fmt.Sprint("pace ", d.Microseconds())) }

// errGone reports a client that has ended.
var errGone = errors.New("the client has ended")

// ask gives a command and returns the numbers of the answer. Errors: errGone; ctx's.
func (c *client) ask(ctx context.Context, verb string) ([]int, error) {
	c.mu.Lock()
	c.asked++
	key := fmt.Sprint(verb, " ", c.asked)
	answer := make(chan []string, 1)
	c.answers[key] = answer
	c.mu.Unlock()
	c.tell(key)
	select {
	case f := <-answer:
		var numbers []int
		for _, s := range f[min(2, len(f)):] {
			n, err := strconv.Atoi(s)
			if err != nil {
				return nil, fmt.Errorf("VM %s answered %q", c.name, f)
			}
			numbers = append(numbers, n)
		}
		return numbers, nil
	case <-c.ended:
		return nil, errGone
	case <-ctx.Done():
		return nil, fmt.Errorf("VM %s does not answer %q: its requests stand still: %w", c.name, verb, ctx.Err())
	}
}

// probe returns when requests that began after the call are done, and the longest time that a request took since the last probe.
func (c *client) probe(ctx context.Context) (time.Duration, error) {
	n, err := c.ask(ctx, "probe")
	if err == nil && len(n) != 2 {
		err = fmt.Errorf("VM %s answered a probe by %v", c.name, n)
	}
	if err != nil {
		return 0, err
	}
	return time.Duration(n[1]) * time.Microsecond, nil
}

// gone reports whether the VM has ended.
func (c *client) gone() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// why says how the VM has ended.
func (c *client) why(ctx context.Context) string {
	c.mu.Lock()
	last := strings.Join(c.tail[max(0, len(c.tail)-3):], " | ")
	c.mu.Unlock()
	v, err := c.r.api.VM(ctx, c.name)
	if err != nil {
		return err.Error()
	}
	if v.Report == nil {
		return fmt.Sprintf("it is %s, its output has ended; it said: %s", v.State, last)
	}
	return fmt.Sprintf("cause %s, code %d, signal %d %s; it said: %s", v.Report.Cause, v.Report.Code, v.Report.Signal, v.Report.Message, last)
}

// fresh forgets the complaints of the last fault.
func (c *client) fresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs, c.bads = nil, nil
}

// complaints returns the requests that were refused and the data that is wrong, since the last fault.
func (c *client) complaints() (errs, bads []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.errs), slices.Clone(c.bads)
}

// again starts the VM once more after it was killed.
func (c *client) again(ctx context.Context) error {
	select {
	case <-c.ended:
	case <-ctx.Done():
		return fmt.Errorf("VM %s does not end: %w", c.name, ctx.Err())
	}
	c.in.Close()
	c.fresh()
	if _, err := c.r.api.WaitVM(ctx, c.name, c.started); err != nil {
		return err
	}
	return c.start(ctx)
}

// end lets the VM come to its end in order.
func (c *client) end(ctx context.Context) error {
	c.in.Close()
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("VM %s does not end: %w", c.name, ctx.Err())
	}
}
