// Command load wants processor time in one of several ways, for as long as it is told or until SIGTERM, and says at the end how it went: what a
// reservation is tried against. It runs as a native guest and as a host process.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Result is the one line of output.
type Result struct {
	Kind    string `json:"kind"`
	Ns      int64  `json:"ns"`                // how long it ran
	Work    uint64 `json:"work"`              // rounds, calls or bursts
	Slept   int64  `json:"slept,omitempty"`   // ns for which all its threads slept of their own will
	Periods []int  `json:"periods,omitempty"` // kind period: µs of work that were done in each period
	Late    []int  `json:"late,omitempty"`    // kind period: µs from the start of each period until it ran
	Windows []int  `json:"windows,omitempty"` // kind walk: rounds in each 100 ms
}

// kinds are the ways, and how many threads each has unless it is told.
var kinds = map[string]struct {
	threads int
	run     func(*config) Result
}{
	"arith":   {2, arith},
	"syscall": {2, syscalls},
	"threads": {16, arith},
	"bursts":  {8, bursts},
	"dodge":   {2, dodge},
	"period":  {1, periods},
	"fork":    {0, fork},
	"fill":    {1, fill},
	"walk":    {1, walk},
}

// config is what one run is told.
type config struct {
	kind    string
	threads int
	until   time.Time
	begin   time.Time
	tick    time.Duration // of the host's clock
	period  time.Duration
	work    time.Duration // in each period
	stopped atomic.Bool
	stop    chan struct{} // closed with stopped
}

// end returns a channel that is closed when it is time to end.
func (c *config) end() <-chan struct{} {
	time.AfterFunc(time.Until(c.until), c.stopOnce)
	return c.stop
}

func (c *config) stopOnce() {
	if c.stopped.CompareAndSwap(false, true) {
		close(c.stop)
	}
}

func main() {
	names := make([]string, 0, len(kinds))
	for k := range kinds {
		names = append(names, k)
	}
	slices.Sort(names)
	kind := flag.String("kind", "arith", "one of "+strings.Join(names, ", "))
	d := flag.Duration("for", time.Second, "how long")
	threads := flag.Int("threads", 0, "how many threads; 0: what the kind has")
	tick := flag.Duration("tick", 4*time.Millisecond, "kind dodge: the host's tick, across which it sleeps")
	period := flag.Duration("period", 20*time.Millisecond, "kind period: length of a period")
	work := flag.Duration("work", 5*time.Millisecond, "kind period: work in each")
	flag.Parse()
	k, ok := kinds[*kind]
	if !ok {
		fmt.Fprintf(os.Stderr, "load: there is no kind %q; use %s\n", *kind, strings.Join(names, ", "))
		os.Exit(2)
	}
	c := &config{kind: *kind, threads: *threads, begin: time.Now(), tick: *tick, period: *period, work: *work, stop: make(chan struct{})}
	c.until = c.begin.Add(*d)
	if c.threads <= 0 {
		c.threads = k.threads
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		c.stopOnce()
	}()
	r := k.run(c)
	r.Kind, r.Ns = c.kind, time.Since(c.begin).Nanoseconds()
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}
