package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/grailos/grail/images/nested/plan"
)

const qemu = "qemu-system-x86_64"

// kind is a sort of emulated machine.
type kind struct {
	name, cpu string
	cpus      int
}

// kinds are the machines that are run, one after the other. They have one processor: with two, QEMU 7.2 corrupts the memory of the kernel that
// it runs, in one of three runs or so with nested paging, and stood still once without it.
var kinds = []kind{
	{name: "npt", cpu: "max,+svm", cpus: 1},
	{name: "shadow", cpu: "max,+svm,-npt", cpus: 1},
}

func kindNames() string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return strings.Join(names, ", ")
}

// machine is one run of an emulated machine.
type machine struct {
	kind
	kernel, initramfs string
	results, console  string // files
	opt               *options
}

// commandLine is the kernel's: little is said on the slow serial port, and a panic ends the machine.
const commandLine = "console=ttyS0 loglevel=4 panic=-1 rdinit=/init random.trust_cpu=on no_timer_check tsc=reliable " +
	"mitigations=off audit=0 i8042.noaux i8042.nokbd"

// arguments are QEMU's.
func (m *machine) arguments() []string {
	return append([]string{
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", m.cpu,
		"-smp", fmt.Sprint(m.cpus), "-m", fmt.Sprintf("%dM", m.opt.memoryMiB),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none",
		"-kernel", m.kernel, "-initrd", m.initramfs, "-append", commandLine,
		"-serial", "stdio", "-serial", "file:" + m.results,
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=4", plan.ExitPort),
	}, strings.Fields(m.opt.qemuArgs)...)
}

// run boots the machine and waits until it ends by itself. Errors: a machine that could not be started, that had to be
// stopped, or that ended in any other way than its first process meant it to; with the console's last lines.
func (m *machine) run(ctx context.Context) error {
	if err := os.WriteFile(m.results, nil, 0o644); err != nil {
		return err
	}
	console, err := os.Create(m.console)
	if err != nil {
		return err
	}
	defer console.Close()
	limited, cancel := context.WithTimeout(ctx, m.opt.limit)
	defer cancel()
	args := m.arguments()
	cmd := exec.CommandContext(limited, qemu, args...)
	cmd.Stdout = console
	if m.opt.verbose {
		fmt.Println(qemu, strings.Join(args, " "))
		cmd.Stdout = io.MultiWriter(console, os.Stdout)
	}
	cmd.Stderr = cmd.Stdout
	// It must not outlive this program, whatever ends it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	err = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code == plan.ExitCode(plan.ExitPass) || code == plan.ExitCode(plan.ExitFail) {
		return nil
	}
	why := "the machine ended before its time: its kernel stopped or was reset"
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		why = fmt.Sprintf("the machine was stopped after %v", m.opt.limit)
	case err != nil && !errors.As(err, &exit):
		return fmt.Errorf("%s: %w", qemu, err)
	case err != nil:
		why = fmt.Sprintf("%s: %v", qemu, err)
	}
	return fmt.Errorf("%s; %s; its console said last:\n%s", why, m.progress(), m.lastLines(40))
}

// progress says how far the machine came.
func (m *machine) progress() string {
	results, _ := m.readResults()
	if len(results) == 0 {
		return "no step was done"
	}
	return fmt.Sprintf("the last thing done was %q", results[len(results)-1].Name)
}

// lastLines returns the end of the console.
func (m *machine) lastLines(n int) string {
	b, err := os.ReadFile(m.console)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	lines = lines[max(0, len(lines)-n):]
	for i, l := range lines {
		lines[i] = append([]byte("  | "), bytes.TrimRight(l, "\r")...)
	}
	return string(bytes.Join(lines, []byte("\n")))
}

// readResults returns the results that the machine has written, as far as they can be read.
func (m *machine) readResults() ([]plan.Result, error) {
	f, err := os.Open(m.results)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []plan.Result
	for d := json.NewDecoder(f); ; {
		var r plan.Result
		if err := d.Decode(&r); err == io.EOF {
			return all, nil
		} else if err != nil {
			return all, fmt.Errorf("%s: result %d: %w", m.results, len(all)+1, err)
		}
		all = append(all, r)
	}
}

// report prints the results and returns whether every step of p is among them and passed.
func (m *machine) report(p *plan.Plan) bool {
	results, err := m.readResults()
	ok := err == nil
	if err != nil {
		fmt.Println("test-nested:", err)
	}
	missing := make(map[string]bool)
	for _, s := range p.Steps {
		missing[s.Name] = true
	}
	ended := false
	for _, r := range results {
		delete(missing, r.Name)
		if r.Name == plan.End {
			ended = true
			continue
		}
		ok = ok && r.Error == ""
		fmt.Println(describe(&r, m.opt.verbose))
	}
	for _, s := range p.Steps {
		if missing[s.Name] {
			fmt.Printf("  MISSING %s\n", s.Name)
			ok = false
		}
	}
	return ok && ended
}

// Bounds of what describe shows of a step's output, which may be a test's of hostile programs.
const (
	maxLines = 60
	maxLine  = 400
)

// describe returns a result as a person reads it.
func describe(r *plan.Result, verbose bool) string {
	var b strings.Builder
	verdict := "ok  "
	if r.Error != "" {
		verdict = "FAIL"
	}
	fmt.Fprintf(&b, "  %s %-24s %6.1f s", verdict, r.Name, r.Seconds)
	if r.Passed+len(r.Skipped)+len(r.Failed) > 0 {
		fmt.Fprintf(&b, "  %d passed, %d skipped, %d failed", r.Passed, len(r.Skipped), len(r.Failed))
	}
	if r.Error != "" {
		fmt.Fprintf(&b, "  %s", r.Error)
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(&b, "\n         skipped %s: %s", s.Test, s.Reason)
	}
	for _, f := range r.Failed {
		fmt.Fprintf(&b, "\n         failed %s", f)
	}
	if r.Output != "" && (verbose || r.Error != "") {
		lines := strings.Split(strings.TrimRight(r.Output, "\r\n"), "\n")
		if n := len(lines) - maxLines; n > 0 && !verbose {
			fmt.Fprintf(&b, "\n         | (%d lines more in the file of results)", n)
			lines = lines[n:]
		}
		for _, l := range lines {
			l = strings.TrimRight(l, "\r")
			fmt.Fprintf(&b, "\n         | %s", l[:min(len(l), maxLine)])
		}
	}
	return b.String()
}
