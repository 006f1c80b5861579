package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// event is one line of go test -json (go doc test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// enginePackages are the packages whose tests run guests on a real engine. noEngine is what such a test says when it
// skips because there is none.
var enginePackages = []string{"vcpu/kvm", "hv/sys", "mgmt/e2e"}

const noEngine = "NO ENGINE"

// module is what package paths begin with.
const module = "github.com/grailos/grail/"

// tally takes events in and keeps what is worth telling.
type tally struct {
	out     io.Writer
	output  map[string][]string // by package and test: what it printed
	passed  int
	failed  []string
	skips   map[string]int // by reason
	engine  map[string]int // by package: tests on a real engine that passed
	lacking int            // tests that skipped for want of an engine
}

func newTally(out io.Writer) *tally {
	return &tally{out: out, output: map[string][]string{}, skips: map[string]int{}, engine: map[string]int{}}
}

// read takes all events from r in.
func (t *tally) read(r io.Reader) error {
	for d := json.NewDecoder(r); ; {
		var e event
		if err := d.Decode(&e); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		t.add(e)
	}
}

func (t *tally) add(e event) {
	pkg := strings.TrimPrefix(e.Package, module)
	if e.Package == "" {
		pkg = e.ImportPath // of a build
	}
	key := pkg + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		t.output[key] = append(t.output[key], e.Output)
		return
	case "pass", "fail", "skip":
	case "build-fail":
		fmt.Fprintf(t.out, "--- %s does not build\n%s", pkg, strings.Join(t.output[key], ""))
		delete(t.output, key)
		return
	default:
		return
	}
	text := t.output[key]
	delete(t.output, key)
	if e.Test == "" {
		t.packageEnd(pkg, e, text)
		return
	}
	switch e.Action {
	case "pass":
		t.passed++
		if slices.Contains(enginePackages, pkg) {
			t.engine[pkg]++
		}
	case "fail":
		t.failed = append(t.failed, pkg+" "+e.Test)
		fmt.Fprintf(t.out, "--- %s %s failed\n%s", pkg, e.Test, strings.Join(text, ""))
	case "skip":
		why := reason(text)
		t.skips[why]++
		if strings.Contains(why, noEngine) {
			t.lacking++
		}
	}
}

func (t *tally) packageEnd(pkg string, e event, text []string) {
	switch {
	case e.Action == "fail":
		fmt.Fprintf(t.out, "FAIL  %-42s %6.1f s\n", pkg, e.Elapsed)
		// A panic or a time-out belongs to no test.
		fmt.Fprint(t.out, strings.Join(text, ""))
		if e.FailedBuild != "" || !slices.ContainsFunc(t.failed, func(f string) bool { return strings.HasPrefix(f, pkg+" ") }) {
			t.failed = append(t.failed, pkg)
		}
	case e.Action == "pass":
		fmt.Fprintf(t.out, "ok    %-42s %6.1f s\n", pkg, e.Elapsed)
	}
}

// reason finds in a skipped test's output why it skipped.
func reason(text []string) string {
	for _, l := range slices.Backward(text) {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "---") || strings.HasPrefix(l, "===") {
			continue
		}
		// file_test.go:12: reason
		if _, after, ok := strings.Cut(l, ": "); ok && strings.Contains(l[:len(l)-len(after)], "_test.go:") {
			l = after
		}
		return strings.TrimPrefix(l, "SKIPPED: ")
	}
	return "no reason given"
}

// end prints the sum and reports whether all is well. ci asks for more than no failure: engine kvm must have been
// tested if the host has it.
func (t *tally) end(ci, kvm bool) bool {
	for _, why := range slices.Sorted(maps.Keys(t.skips)) {
		fmt.Fprintf(t.out, "skipped %d: %s\n", t.skips[why], why)
	}
	engine := 0
	for _, n := range t.engine {
		engine += n
	}
	fmt.Fprintf(t.out, "%d tests passed, %d failed, %d skipped; tests of the engines' packages: %d passed, %d found no engine\n",
		t.passed, len(t.failed), sum(t.skips), engine, t.lacking)
	for _, f := range t.failed {
		fmt.Fprintln(t.out, "failed:", f)
	}
	if ci && kvm && (t.lacking > 0 || engine == 0) {
		fmt.Fprintln(t.out, "failed: this machine has /dev/kvm, and tests of engine kvm did not run")
		return false
	}
	return len(t.failed) == 0
}

func sum(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}
