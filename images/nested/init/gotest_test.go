package main

import (
	"reflect"
	"testing"

	"github.com/grailos/grail/images/nested/plan"
)

func TestCountTests(t *testing.T) {
	for _, c := range []struct {
		name, output string
		want         plan.Result
	}{
		{"all kinds", `=== RUN   TestA
--- PASS: TestA (0.00s)
=== RUN   TestB
=== RUN   TestB/sub
    b_test.go:3: noise
--- FAIL: TestB (0.10s)
    --- FAIL: TestB/sub (0.10s)
=== RUN   TestC
    c_test.go:9: SKIPPED, NO ENGINE: it is missing
--- SKIP: TestC (0.00s)
--- PASS: not at all
FAIL
`, plan.Result{Passed: 2, Failed: []string{"TestB"},
			Skipped: []plan.Skip{{Test: "TestC", Reason: "c_test.go:9: SKIPPED, NO ENGINE: it is missing"}}}},
		{"all skipped", "=== RUN   TestA\r\n    why\r\n--- SKIP: TestA (0.00s)\r\nPASS\r\n",
			plan.Result{Error: "no test passed: all of them skipped, or there is none", Skipped: []plan.Skip{{Test: "TestA", Reason: "why"}}}},
		{"nothing", "", plan.Result{Error: "no test passed: all of them skipped, or there is none"}},
		{"odd lines", "--- \n--- PASS\n--- PASS:\n---PASS: x\n===\n\n", plan.Result{Error: "no test passed: all of them skipped, or there is none"}},
	} {
		var got plan.Result
		countTests([]byte(c.output), &got)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, expected %+v", c.name, got, c.want)
		}
	}
}

func TestTail(t *testing.T) {
	w := &tail{max: 10}
	for range 100 {
		if n, err := w.Write([]byte("abc")); n != 3 || err != nil {
			t.Fatal(n, err)
		}
	}
	if b := w.bytes(); len(b) > 10 || len(b) < 5 || b[len(b)-1] != 'c' {
		t.Errorf("%q", b)
	}
}
