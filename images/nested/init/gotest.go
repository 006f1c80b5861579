package main

import (
	"bytes"
	"strings"

	"github.com/grailos/grail/images/nested/plan"
)

// maxSaid is how many of a test's last lines are taken for the reason of its skip.
const maxSaid = 4

// countTests reads the output of a Go test run with -test.v and fills in what became of its tests. Tests within
// tests count with the one that they are in.
func countTests(output []byte, r *plan.Result) {
	var said []string
	for line := range bytes.Lines(output) {
		l := strings.TrimRight(string(line), "\r\n")
		verdict, rest, ok := strings.Cut(strings.TrimPrefix(l, "--- "), ": ")
		if ok = ok && strings.HasPrefix(l, "--- "); !ok && !strings.HasPrefix(l, "=== ") {
			if said = append(said, strings.TrimSpace(l)); len(said) > maxSaid {
				said = said[1:]
			}
			continue
		}
		if ok {
			test, _, _ := strings.Cut(rest, " ")
			switch verdict {
			case "PASS":
				r.Passed++
			case "FAIL":
				r.Failed = append(r.Failed, test)
			case "SKIP":
				r.Skipped = append(r.Skipped, plan.Skip{Test: test, Reason: strings.Join(said, " ")})
			}
		}
		said = nil
	}
	if r.Error == "" && r.Passed == 0 {
		r.Error = "no test passed: all of them skipped, or there is none"
	}
}
