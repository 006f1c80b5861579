package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/personalities/native"
)

// guest is a running native VM without a graild.
type guest struct {
	name   string
	proc   *hv.Process
	report *os.File
}

// startGuest starts a VM that runs program with args. The files stay the caller's.
func (b *bench) startGuest(program string, args []string, memory uint64, stdin, stdout *os.File) (*guest, error) {
	f, err := native.CheckPath(program)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	report, err := os.CreateTemp(b.dir, "report")
	if err != nil {
		return nil, err
	}
	l := hv.NewLaunch(b.grailvm, hv.Personality, filepath.Base(program))
	l.Stderr = os.Stderr
	l.Spec.Engine = b.engine
	l.Spec.KVM = l.Add(b.kvm)
	l.Spec.Program = l.Add(f)
	l.Spec.Argv = append([]string{program}, args...)
	l.Spec.Env = native.Env()
	l.Spec.MemoryBytes = memory
	l.Spec.Stdin, l.Spec.Stdout, l.Spec.Stderr = l.Add(stdin), l.Add(stdout), l.Add(os.Stderr)
	l.Spec.Report = l.Add(report)
	p, err := l.Start()
	if err != nil {
		report.Close()
		return nil, err
	}
	return &guest{name: filepath.Base(program), proc: p, report: report}, nil
}

// guestPatience is how long a guest may take to end.
const guestPatience = 2 * time.Minute

// wait returns when the guest has ended, with its report. Errors: it did not end well.
func (g *guest) wait() (*hv.Report, error) {
	defer g.report.Close()
	defer os.Remove(g.report.Name())
	defer g.proc.Close()
	if err := g.proc.Wait(guestPatience); err != nil {
		g.proc.Kill()
		return nil, err
	}
	if _, err := g.report.Seek(0, 0); err != nil {
		return nil, err
	}
	r := new(hv.Report)
	if err := json.NewDecoder(g.report).Decode(r); err != nil {
		return nil, fmt.Errorf("the VM of %s left no report: %w", g.name, err)
	}
	if r.Cause != hv.CauseExit || r.Code != 0 {
		return r, fmt.Errorf("the VM of %s ended by %s, code %d, %s", g.name, r.Cause, r.Code, r.Message)
	}
	return r, nil
}

// kill ends the guest.
func (g *guest) kill() {
	g.proc.Kill()
	_ = g.proc.Wait(guestPatience)
	g.proc.Close()
	g.report.Close()
	os.Remove(g.report.Name())
}

// hostCommand is the same program as a host process.
func hostCommand(program string, args ...string) *exec.Cmd {
	c := exec.Command(program, args...)
	c.Env, c.Stderr = native.Env(), os.Stderr
	return c
}

// example returns the path of one of the example guests, which stand in the folder examples beside Grail's programs.
func (b *bench) example(name string) (string, error) {
	p := filepath.Join(filepath.Dir(b.grailvm), "examples", name)
	if _, err := os.Stat(p); err != nil {
		return "", fmt.Errorf("the example guest %s is missing; run make build: %w", name, err)
	}
	return p, nil
}

// errSkipped reports that this host lacks what a benchmark needs.
var errSkipped = errors.New("skipped")
