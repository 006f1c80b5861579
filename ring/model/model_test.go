package model

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var full = flag.Bool("full", false, "check the large bounds and all mutants, which takes a minute or two and half a GiB")

// One run of the models. Options are -D names without that.
type run struct {
	model   string
	options string
	wants   string // in spin's verdict on a mutant; empty: the model holds
	full    bool   // only with -full
}

// What is checked of handover.pml: rings and log with every step apart; doorbells lost; graild's deaths and a spare.
const (
	rings  = "NOSPARE GRAILD=0 N=2 DEATHS=1"
	two    = "NOSPARE GRAILD=0 N=2 DEATHS=2"
	three  = "NOSPARE GRAILD=0 N=3 DEATHS=1"
	lossy  = "LOSSY NOSPARE GRAILD=0 N=1 DEATHS=1"
	graild = "GRAILD_ONLY N=2 GRAILD=1 DEATHS=1"
	again  = "GRAILD_ONLY N=2 GRAILD=1 DEATHS=2"
)

// What is checked of epoch.pml: with graild's deaths; without; without liars.
const (
	one    = "N=1"
	steady = "N=1 GRAILD=0"
	honest = "N=2 LIES=0"
)

var runs = []run{
	{model: "notify"},
	{model: "notify", options: "FLAGS"},
	{model: "notify", options: "HOST"},
	{model: "notify", options: "HOST FLAGS"},
	{model: "handover", options: rings, full: true},
	{model: "handover", options: lossy},
	{model: "handover", options: graild},
	{model: "handover", options: two, full: true},
	{model: "handover", options: three, full: true},
	{model: "handover", options: again, full: true},
	{model: "epoch", options: one},
	{model: "epoch", options: "N=2", full: true},
	{model: "epoch", options: "N=2 GRAILD=0 RENEW", full: true},
	{model: "epoch", options: "N=2 GRAILD=0 LIES=2", full: true},
	{model: "epoch", options: "N=3 GRAILD=0", full: true},

	// The needed event is that of the last request and not of any in the batch.
	{model: "notify", options: "MUTANT_EVENT", wants: asleep, full: true},
	// No fence between publishing and looking at the peer's wish.
	{model: "notify", options: "MUTANT_FENCE", wants: asleep},
	{model: "notify", options: "MUTANT_FENCE FLAGS", wants: asleep, full: true},
	// The doorbell is drained after it was armed.
	{model: "notify", options: "HOST MUTANT_DRAIN", wants: asleep},
	// Arm does not look again.
	{model: "notify", options: "MUTANT_CHECK", wants: asleep},

	// A request is not marked when it is taken.
	{model: "handover", options: rings + " MUTANT_MARK", wants: "assertion violated", full: true},
	// Completions are not linked into the batch.
	{model: "handover", options: rings + " MUTANT_LINK", wants: "assertion violated", full: true},
	// The log is cleared before the used index is published.
	{model: "handover", options: rings + " MUTANT_ORDER", wants: "assertion violated"},
	// The log's used index is stored before the marks are cleared.
	{model: "handover", options: rings + " MUTANT_COMMIT", wants: "assertion violated", full: true},
	// So it is when a batch is completed in recovery.
	{model: "handover", options: two + " MUTANT_RECOVER", wants: "assertion violated", full: true},
	// What was in flight is not done again.
	{model: "handover", options: rings + " MUTANT_REPLAY", wants: "violated|invalid end state", full: true},
	// Nobody rings after the hand-over.
	{model: "handover", options: rings + " MUTANT_BELL", wants: asleep},
	// An operation that failed because the host is gone is taken for done.
	{model: "handover", options: rings + " MUTANT_PERFORM", wants: `assertion violated landed\[r\]`, full: true},
	// The successor is attached before its predecessor is reaped.
	{model: "handover", options: rings + " MUTANT_REAP", wants: `assertion violated \(owner==`},
	// The client does not look by itself after a time.
	{model: "handover", options: lossy + " MUTANT_LOOK", wants: asleep},
	// A new graild does not see a process whose first thread has ended, while another one is still in a system call.
	{model: "handover", options: graild + " MUTANT_SCAN", wants: "assertion violated"},
	// Nor waits for the lock of the backing file when there is no spare.
	{model: "handover", options: graild + " NOSPARE MUTANT_SCAN MUTANT_LOCK", wants: "assertion violated", full: true},

	// A ring that is broken is recovered by its log, as any other.
	{model: "epoch", options: steady + " MUTANT_TRUST", wants: "assertion violated", full: true},
	// The epoch changes before the liar is reaped, or has let go of the client.
	{model: "epoch", options: steady + " MUTANT_EPOCH", wants: "assertion violated"},
	{model: "epoch", options: steady + " RENEW MUTANT_RENEW", wants: "assertion violated", full: true},
	{model: "epoch", options: steady + " MUTANT_REAP", wants: `assertion violated \(owner==`, full: true},
	// The next instance is attached before the client has started its ring anew.
	{model: "epoch", options: steady + " MUTANT_WAIT", wants: "assertion violated", full: true},
	// Used ring and log are cleared before that.
	{model: "epoch", options: steady + " MUTANT_EARLY", wants: `assertion violated landed\[r\]`},
	// The client says so before it has begun.
	{model: "epoch", options: steady + " MUTANT_ACK", wants: "assertion violated", full: true},
	// It begins where a new ring does, and not where the used index stands.
	{model: "epoch", options: steady + " MUTANT_BASE", wants: "assertion violated", full: true},
	// That the log was cleared is known to graild alone, which dies.
	{model: "epoch", options: honest + " MUTANT_KEPT", wants: `assertion violated  !\(told`},
}

// asleep is spin's word for a deadlock: everybody sleeps and requests wait.
const asleep = "invalid end state"

var errorCount = regexp.MustCompile(`errors: (\d+)`)

func TestModels(t *testing.T) {
	for _, tool := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed; images/setup model installs it", tool)
		}
	}
	for _, r := range runs {
		t.Run(strings.ReplaceAll(r.model+" "+r.options, " ", ","), func(t *testing.T) {
			if r.full && !*full {
				t.Skip("only with -full: make model")
			}
			r.check(t)
		})
	}
}

func (r run) check(t *testing.T) {
	pml, err := filepath.Abs(r.model + ".pml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	tool := func(name string, args ...string) string {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	generate := []string{"-a"}
	for _, o := range strings.Fields(r.options) {
		generate = append(generate, "-D"+o)
	}
	tool("spin", append(generate, pml)...)
	// Memory is bounded in MiB; a search that needs more says so, and is no proof.
	level := "-O0" // most searches take less time than the compiler
	if r.full {
		level = "-O1"
	}
	tool("gcc", "-w", level, "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=1000", "-o", "pan", "pan.c")
	out := tool(filepath.Join(dir, "pan"), "-m1000000", "-w22")

	counted := errorCount.FindStringSubmatch(out)
	if counted == nil {
		t.Fatalf("no verdict:\n%s", out)
	}
	found := counted[1] != "0"
	switch {
	case r.wants == "" && found:
		t.Errorf("the model does not hold:\n%s\n%s", out, r.trail(dir, pml, generate[1:]))
	case r.wants == "" && strings.Contains(out, "not completed"), strings.Contains(out, "depth too small"):
		t.Errorf("the search was not complete:\n%s", out)
	case r.wants != "" && !found:
		t.Errorf("the mistake was not found, so the model proves nothing about it:\n%s", out)
	case r.wants != "" && !regexp.MustCompile(r.wants).MatchString(out):
		t.Errorf("a mistake was found, but not as %q:\n%s", r.wants, out)
	}
	if m := regexp.MustCompile(`(\d+) states, stored`).FindStringSubmatch(out); m != nil {
		t.Logf("%s states", m[1])
	}
}

// trail returns the last steps of a counterexample. spin looks for it beside the model.
func (r run) trail(dir, pml string, options []string) string {
	text, err := os.ReadFile(pml)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, r.model+".pml"), text, 0o600)
	}
	if err != nil {
		return err.Error()
	}
	cmd := exec.Command("spin", append(append([]string{"-t", "-p"}, options...), r.model+".pml")...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(out), "\n")
	return strings.Join(lines[max(0, len(lines)-150):], "\n")
}
