// Command bench times fixed amounts of work: the same binary runs as a native guest and as a host process, and
// their ratio is what isolation costs. Each result is one line of JSON: name, nanoseconds of wall time for the
// whole work, and what the work was.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"
)

// Result is one line of output.
type Result struct {
	Name string `json:"name"`
	Ns   int64  `json:"ns"`
	Work string `json:"work"`
	Run  int    `json:"run"` // 0, 1, … when -runs is more than 1
}

// benchmark is fixed work. prepare makes what is not timed, and returns what is.
type benchmark struct {
	name, work string
	prepare    func() func() error
}

func main() {
	names := flag.String("run", "", "comma-separated names; all by default")
	runs := flag.Int("runs", 1, "how often each is run")
	flag.Parse()
	known := map[string]bool{}
	for _, b := range benchmarks {
		known[b.name] = true
	}
	wanted := map[string]bool{}
	for n := range strings.SplitSeq(*names, ",") {
		if n == "" {
			continue
		}
		if !known[n] {
			fmt.Fprintf(os.Stderr, "bench: no benchmark %q\n", n)
			os.Exit(2)
		}
		wanted[n] = true
	}
	out := json.NewEncoder(os.Stdout)
	for _, b := range benchmarks {
		if len(wanted) > 0 && !wanted[b.name] {
			continue
		}
		f := b.prepare()
		for i := range *runs {
			begin := time.Now()
			err := f()
			ns := time.Since(begin).Nanoseconds()
			if err == nil {
				err = out.Encode(Result{Name: b.name, Ns: ns, Work: b.work, Run: i})
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "bench: %s: %v\n", b.name, err)
				os.Exit(1)
			}
		}
	}
}
