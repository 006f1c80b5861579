package main

import (
	"bytes"
	"strings"

	"github.com/grailos/grail/images/nested/plan"
)

// countTests reads the output of a Go test run with -test.v and fills in what became of its tests. Tests within
// tests count with the one that they are in.
func countTests(output []byte, r *plan.Result) {
	var last []string // what the test in progress said
	for line := range bytes.Lines(output) {
		l := strings.TrimRight(string(line), "\r\n")
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(l, "--- PASS: "), "--- SKIP: "), "--- FAIL: "), " ")
		switch {
		case strings.HasPrefix(l, "=== "):
			last = nil
		case strings.HasPrefix(l, "--- PASS: "):
			r.Passed++
			last = nil
		case strings.HasPrefix(l, "--- FAIL: "):
			r.Failed = append(r.Failed, name)
			last = nil
		case strings.HasPrefix(l, "--- SKIP: "):
			r.Skipped = append(r.Skipped, plan.Skip{Test: name, Reason: strings.TrimSpace(strings.Join(last, " "))})
			last = nil
		default:
			if last = append(last, strings.TrimSpace(l)); len(last) > 4 {
				last = last[1:]
			}
		}
	}
	if r.Error == "" && r.Passed == 0 {
		r.Error = "no test passed: all of them skipped, or there is none"
	}
}
