package main

import (
	"strings"
	"testing"
)

const goodRun = `
{"Action":"run","Package":"github.com/grailos/grail/hv/sys","Test":"TestA"}
{"Action":"output","Package":"github.com/grailos/grail/hv/sys","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"pass","Package":"github.com/grailos/grail/hv/sys","Test":"TestA","Elapsed":0.1}
{"Action":"output","Package":"github.com/grailos/grail/hv/sys","Test":"TestB","Output":"    a_test.go:9: needs root\n"}
{"Action":"output","Package":"github.com/grailos/grail/hv/sys","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"github.com/grailos/grail/hv/sys","Test":"TestB"}
{"Action":"pass","Package":"github.com/grailos/grail/hv/sys","Elapsed":1.5}
`

const lackingRun = goodRun + `
{"Action":"output","Package":"github.com/grailos/grail/vcpu/kvm","Test":"TestC","Output":"    k_test.go:44: SKIPPED, NO ENGINE: /dev/kvm: no such file\n"}
{"Action":"skip","Package":"github.com/grailos/grail/vcpu/kvm","Test":"TestC"}
`

const badRun = goodRun + `
{"Action":"output","Package":"github.com/grailos/grail/ring","Test":"TestD","Output":"    r_test.go:1: wrong\n"}
{"Action":"fail","Package":"github.com/grailos/grail/ring","Test":"TestD"}
{"Action":"fail","Package":"github.com/grailos/grail/ring","Elapsed":2}
`

const brokenBuild = `
{"ImportPath":"github.com/grailos/grail/ring","Action":"build-output","Output":"x.go:1: undefined: y\n"}
{"ImportPath":"github.com/grailos/grail/ring","Action":"build-fail"}
{"Action":"fail","Package":"github.com/grailos/grail/ring","Elapsed":0,"FailedBuild":"github.com/grailos/grail/ring"}
`

const panicked = `
{"Action":"output","Package":"github.com/grailos/grail/ring","Output":"panic: test timed out\n"}
{"Action":"fail","Package":"github.com/grailos/grail/ring","Elapsed":480}
`

func TestTally(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		ci, kvm  bool
		ok       bool
		says     string
	}{
		{"good", goodRun, true, true, true, "1 tests passed, 0 failed, 1 skipped; tests of the engines' packages: 1 passed, 0 found"},
		{"reason", goodRun, true, true, true, "skipped 1: needs root\n"},
		{"no engine here", lackingRun, true, false, true, "1 found no engine"},
		{"no engine at home", lackingRun, false, true, true, "skipped 1: SKIPPED, NO ENGINE: /dev/kvm"},
		{"no engine in CI", lackingRun, true, true, false, "did not run"},
		{"no engine tests in CI", brokenBuild, true, true, false, "did not run"},
		{"failure", badRun, false, false, false, "r_test.go:1: wrong"},
		{"failure is named", badRun, false, false, false, "failed: ring TestD\n"},
		{"build", brokenBuild, false, false, false, "undefined: y"},
		{"panic", panicked, false, false, false, "test timed out"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			tally := newTally(&out)
			if err := tally.read(strings.NewReader(tc.in)); err != nil {
				t.Fatal(err)
			}
			if got := tally.end(tc.ci, tc.kvm); got != tc.ok {
				t.Errorf("%v", got)
			}
			if !strings.Contains(out.String(), tc.says) {
				t.Errorf("%q is missing in:\n%s", tc.says, out.String())
			}
		})
	}
}
