package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/mgmt/tenant"
)

// sharer is a tenant of a benchmark, with one VM that is busy in one of the example load's ways.
type sharer struct {
	name, kind string
	guarantee  tenant.Milli
	rt         *tenant.RealTime
	host       bool // it is no tenant: the peer, the same program as a process of the host with the same budget

	process *exec.Cmd // of the host
	out     *os.File
	result  loadResult
	used    tenant.Milli // on average while it was measured
}

// loadResult is what the example load prints.
type loadResult struct {
	Ns      int64
	Slept   int64
	Periods []int
	Late    []int
	Windows []int
}

// contests are the tenants of shares_cpu: parts of what can be guaranteed, in thousandths, and what they do with it.
var contests = [][]sharer{
	{{kind: "arith", guarantee: 700}, {kind: "syscall", guarantee: 300}},
	{{kind: "threads", guarantee: 500}, {kind: "bursts", guarantee: 350}, {kind: "dodge", guarantee: 150}},
	{{kind: "arith", guarantee: 300}, {kind: "syscall", guarantee: 200}, {kind: "threads", guarantee: 150}, {kind: "bursts", guarantee: 100},
		{kind: "dodge", guarantee: 80}, {kind: "arith", guarantee: 70}, {kind: "bursts", guarantee: 60}, {kind: "syscall", guarantee: 40}},
}

// sharesCPU measures how far what busy tenants get is from what is due to them.
func sharesCPU(b *bench) ([]Result, error) {
	length := time.Duration(b.rounds(6, 30)) * time.Second
	var worst []float64
	var notes []string
	for _, contest := range contests {
		b.progress("shares_cpu: %d tenants, %v", len(contest), length)
		list := make([]*sharer, len(contest))
		const give = tenant.Milli(900) // of every thousandth of the processors: the rest is the host's, and divided by weight
		for i, c := range contest {
			c.name = fmt.Sprintf("t%d", i)
			c.guarantee = c.guarantee * tenant.Milli(runtime.NumCPU()) * give / 1000
			list[i] = &c
		}
		total, err := b.contest(list, length)
		if err != nil {
			return nil, err
		}
		off, text := judge(list, total)
		worst = append(worst, off)
		notes = append(notes, text)
	}
	r := newResult("shares_cpu", "% of machine", less, worst, "", nil)
	r.Value = quantile(worst, 1)
	r.bar.most = 1
	r.note = strings.Join(notes, "\n")
	return []Result{r}, nil
}

// judge returns the largest distance of what a tenant got from what was due to it, in percent of the machine, and the table of it. total is what all
// tenants got together.
func judge(list []*sharer, total tenant.Milli) (worst float64, text string) {
	machine := float64(1000 * runtime.NumCPU())
	var guaranteed tenant.Milli
	for _, s := range list {
		guaranteed += s.guarantee
	}
	lines := []string{fmt.Sprintf("%d tenants, who got %.1f %% of the machine together; asked, due and got in %% of the machine:", len(list), 100*float64(total)/machine)}
	for _, s := range list {
		// Guarantees first; what is left is divided evenly, because all weights are the same.
		most := float64(s.guarantee) + max(float64(total-guaranteed), 0)/float64(len(list))
		// Who sleeps of its own will asks for nothing meanwhile.
		least := most
		if s.result.Ns > 0 {
			least *= 1 - float64(s.result.Slept)/float64(s.result.Ns)
		}
		got := float64(s.used)
		off := 100 * max(got-most, least-got, 0) / machine
		worst = max(worst, off)
		lines = append(lines, fmt.Sprintf("%s (%s): asked %.2f, due %.2f, got %.2f, off %.2f", s.name, s.kind, 100*float64(s.guarantee)/machine,
			100*most/machine, 100*got/machine, off))
	}
	return worst, strings.Join(lines, "\n")
}

// settle is how long tenants run before they are measured.
const settle = 2 * time.Second

// contest runs the tenants' VMs beside each other and notes what each got within length.
func (b *bench) contest(list []*sharer, length time.Duration) (total tenant.Milli, err error) {
	defer func() {
		for _, s := range list {
			err = errors.Join(err, b.endShare(s))
		}
	}()
	for _, s := range list {
		if err := b.startShare(s); err != nil {
			return 0, err
		}
	}
	before, err := b.usage(settle)
	if err != nil {
		return 0, err
	}
	after, err := b.usage(length)
	if err != nil {
		return 0, err
	}
	for _, s := range list {
		if s.host {
			continue
		}
		x, y := before[s.name], after[s.name]
		if x == nil || y == nil {
			return 0, fmt.Errorf("%w: the tenants' processor time is not accounted here; see grailctl doctor", errSkipped)
		}
		s.used = tenant.Milli((y.UsedNs - x.UsedNs) * 1000 / uint64(y.Time.Sub(x.Time)))
		total += s.used
	}
	// In this order: the first ones are to have company until they end.
	for _, s := range list {
		if s.host {
			err = s.process.Process.Signal(unix.SIGTERM)
		} else {
			err = b.daemon.SignalVM(b.ctx, "vm-"+s.name, int(unix.SIGTERM))
		}
		if err != nil {
			return 0, err
		}
		if err := b.finishShare(s); err != nil {
			return 0, err
		}
	}
	return total, nil
}

// usage waits and returns what each tenant has used so far.
func (b *bench) usage(wait time.Duration) (map[string]*api.CPUUsage, error) {
	select {
	case <-time.After(wait):
	case <-b.ctx.Done():
		return nil, b.ctx.Err()
	}
	tree, err := b.daemon.Tenants(b.ctx)
	if err != nil {
		return nil, err
	}
	m := map[string]*api.CPUUsage{}
	for _, n := range tree {
		if n.Kind == tenant.Tenant {
			m[n.Name] = n.CPU
		}
	}
	return m, nil
}

// loadMemory is the guest memory of a VM that is only busy, in bytes.
const loadMemory = 64 << 20

// longest is how long a VM is busy that nobody ends.
const longest = 10 * time.Minute

// startShare makes a tenant and starts its VM, which is busy until it is told to end.
func (b *bench) startShare(s *sharer) error {
	if s.host {
		return b.startPeer(s)
	}
	d, err := b.startDaemon()
	if err != nil {
		return err
	}
	if _, err := d.CreateTenant(b.ctx, api.CreateTenant{Path: s.name, Share: tenant.Share{CPU: tenant.CPU{Guarantee: s.guarantee}}}); err != nil {
		return err
	}
	var w *os.File
	if s.out, w, err = os.Pipe(); err != nil {
		return err
	}
	defer w.Close()
	cfg := api.VMConfig{Name: "vm-" + s.name, MemoryBytes: loadMemory, Tenant: s.name, Args: []string{"-kind", s.kind, "-for", longest.String()}}
	if cfg.Share.CPU.RealTime = s.rt; s.rt != nil {
		cfg.Env = []string{unpreempted}
	}
	return b.startLoad(cfg, w)
}

// unpreempted has a Go program keep its threads: the runtime gives one's work to another otherwise, which has no budget.
const unpreempted = "GODEBUG=asyncpreemptoff=1"

// startPeer starts the load as a process of the host, its first thread with the budget.
func (b *bench) startPeer(s *sharer) (err error) {
	program, err := b.example("load")
	if err != nil {
		return err
	}
	var w *os.File
	if s.out, w, err = os.Pipe(); err != nil {
		return err
	}
	defer w.Close()
	cmd := exec.CommandContext(b.ctx, program, "-kind", s.kind, "-for", longest.String())
	cmd.Stdout, cmd.Stderr, cmd.Env = w, os.Stderr, append(os.Environ(), unpreempted)
	if err := cmd.Start(); err != nil {
		return err
	}
	s.process = cmd
	ns := func(us int64) uint64 { return uint64(us) * 1000 }
	return unix.SchedSetAttr(cmd.Process.Pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_DEADLINE, Flags: unix.SCHED_FLAG_RESET_ON_FORK,
		Runtime: ns(s.rt.GrantUs()), Deadline: ns(s.rt.PeriodUs), Period: ns(s.rt.PeriodUs)}, 0)
}

// startLoad starts a native VM with the program load, which prints to stdout if that is not nil.
func (b *bench) startLoad(cfg api.VMConfig, stdout *os.File) error {
	program, err := b.example("load")
	if err != nil {
		return err
	}
	f, err := os.Open(program)
	if err != nil {
		return err
	}
	defer f.Close()
	files := map[api.Role]*os.File{api.RoleProgram: f}
	if stdout != nil {
		files[api.RoleStdout] = stdout
	}
	ticket, release, err := api.HandOver(b.dirs().Handover(), files)
	if err != nil {
		return err
	}
	defer release()
	cfg.Personality, cfg.Engine, cfg.Program = api.Native, b.engine, program
	_, err = b.daemon.CreateVM(b.ctx, api.CreateVM{Config: cfg, Start: &api.StartVM{Ticket: ticket, Wait: true}})
	return err
}

// dirs are the benchmarks' own directories.
func (b *bench) dirs() place.Dirs {
	return place.Dirs{State: filepath.Join(b.dir, "state"), Run: filepath.Join(b.dir, "run")}
}

// finishShare waits for the VM's end and reads what it has to say.
func (b *bench) finishShare(s *sharer) error {
	out, err := io.ReadAll(io.LimitReader(s.out, 1<<20))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, &s.result); err != nil {
		return fmt.Errorf("tenant %s's load said %.80q: %w", s.name, out, err)
	}
	return nil
}

// endShare removes a tenant and its VM, if they are there.
func (b *bench) endShare(s *sharer) error {
	if s.out != nil {
		s.out.Close()
	}
	if s.process != nil {
		_ = s.process.Process.Kill() // it may have ended
		_ = s.process.Wait()         // what it says was read already
	}
	if b.daemon == nil || s.host {
		return nil
	}
	if err := b.daemon.RemoveVM(b.ctx, "vm-"+s.name, true); err != nil && api.KindOf(err) != api.NotFound {
		return err
	}
	if err := b.daemon.RemoveTenant(b.ctx, s.name); err != nil && api.KindOf(err) != api.NotFound {
		return err
	}
	return nil
}

// sharesRT measures how much of its budget a real-time VM lacks in its worst period, beside four tenants who want all there is, and beside the same program
// as a process of the host with the same budget: what a machine that others use as well has taken from both.
func sharesRT(b *bench) ([]Result, error) {
	length := time.Duration(b.rounds(10, 60)) * time.Second
	b.progress("shares_rt: %v", length)
	budget := &tenant.RealTime{RuntimeUs: 5000, PeriodUs: 20_000}
	rt := &sharer{name: "rt", kind: "period", guarantee: budget.Milli(), rt: budget}
	peer := &sharer{name: "peer", kind: "period", rt: budget, host: true}
	list := []*sharer{rt, peer}
	for i, kind := range []string{"arith", "syscall", "threads", "bursts"} {
		list = append(list, &sharer{name: fmt.Sprintf("busy%d", i), kind: kind, guarantee: tenant.Milli(runtime.NumCPU() * 1000 / 10)})
	}
	if _, err := b.contest(list, length); err != nil {
		return nil, err
	}
	ours, note, err := shortfalls(rt, length)
	if err != nil {
		return nil, err
	}
	theirs, peerNote, err := shortfalls(peer, length)
	if err != nil {
		return nil, err
	}
	r := newResult("shares_rt", "% of budget", less, []float64{quantile(ours, 1)}, "a process with the same budget, at the same time", []float64{quantile(theirs, 1)})
	r.bar.most = lacking
	r.note = fmt.Sprintf("asked 5 ms of every 20 ms\nVM: %s\nprocess: %s", note, peerNote)
	return []Result{r}, nil
}

// lacking is how much of its budget a period may lack, in percent.
const lacking = 5

// shortfalls returns what each of the last periods but one, which its end cut short, lacked, in percent of the budget, and a summary.
func shortfalls(s *sharer, length time.Duration) (short []float64, note string, err error) {
	n := int(length / (time.Duration(s.rt.PeriodUs) * time.Microsecond))
	end := min(len(s.result.Periods), len(s.result.Late)) - 1
	if end < n {
		return nil, "", fmt.Errorf("%s ran %d periods, %d were expected", s.name, end, n)
	}
	short = values(s.result.Periods[end-n:end], func(us int) float64 { return 100 * (1 - float64(us)/float64(s.rt.RuntimeUs)) })
	ms := values(s.result.Late[end-n:end], func(us int) float64 { return float64(us) / 1000 })
	missed := 0
	for _, s := range short {
		if s > lacking {
			missed++
		}
	}
	return short, fmt.Sprintf("of %d periods %d lacked more than %d %% of it, the median lacked %.1f %%; wake-up latency: median %s ms, 99 %% %s ms, worst %s ms",
		n, missed, lacking, median(short), number(median(ms)), number(quantile(ms, 0.99)), number(quantile(ms, 1))), nil
}
