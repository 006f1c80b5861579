// Command bench measures the numbers that docs/SPECIFICATION.md promises: it prints a table, and writes bench.json. What
// is compared with a peer runs in turn with it, so that both meet the same machine. It runs beside Grail's other programs
// (place.Program) and the example guests in the folder examples there, with a graild and a state directory of its own.
//
//	bench [-quick] [-run REGEXP] [-engine kvm|process] [-dir DIR] [-o bench.json]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/engine"
	"github.com/grailos/grail/mgmt/place"
)

// bench is what benchmarks share.
type bench struct {
	ctx     context.Context
	quick   bool
	only    *regexp.Regexp
	dir     string // for files; removed at the end
	host    host
	engine  hv.Engine
	kvm     *os.File // nil on engine process
	grailvm string

	daemon *daemon // nil until it is needed
}

// suite is a benchmark, or several that share what they need.
type suite struct {
	names []string
	run   func(*bench) ([]Result, error)
	slow  bool // left out of a quick run that does not ask for it by name
}

var suites = []suite{
	{names: []string{"start_native_ms"}, run: startNative},
	{names: []string{"start_native_rss_mib"}, run: startMemory},
	{names: []string{"cpu_arith"}, run: cpu("cpu_arith", 0.98)},
	{names: []string{"cpu_sort"}, run: cpu("cpu_sort", 0.98)},
	{names: []string{"cpu_sha256"}, run: cpu("cpu_sha256", 0.98)},
	{names: []string{"cpu_json"}, run: cpu("cpu_json", 0.98)},
	{names: []string{"cpu_threads2"}, run: cpu("cpu_threads2", 0.98)},
	{names: []string{"mem_copy"}, run: cpu("mem_copy", 0.95)},
	{names: blkNames, run: block},
	{names: linuxNames, run: linux, slow: true},
	{names: recoverNames, run: recovery},
	{names: spareNames, run: spareRecovery},
	{names: []string{"recover_cold_ms"}, run: coldRecovery},
	{names: []string{"throughput_killed"}, run: throughputKilled},
	{names: []string{"recover_vs_qsd"}, run: recoverVsQSD, slow: true},
	{names: []string{"shares_cpu"}, run: sharesCPU},
	{names: []string{"shares_rt"}, run: sharesRT},
	{names: []string{"shares_mem"}, run: sharesMem},
	{names: netNames, run: network},
	{names: shareNames, run: shares},
	{names: []string{"net_recover_ms"}, run: netRecovery},
}

func main() {
	quick := flag.Bool("quick", false, "fewer and shorter runs: under 3 minutes in all")
	only := flag.String("run", "", "run only benchmarks whose names match this regular expression")
	engineName := flag.String("engine", "", "engine of all VMs: kvm or process; the best that works by default")
	dir := flag.String("dir", "", "directory for the disk image and the state; a temporary one by default")
	out := flag.String("o", "", "file that takes the results as JSON")
	flag.Parse()
	if err := run(*quick, *only, hv.Engine(*engineName), *dir, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(quick bool, only string, want hv.Engine, dir, out string) (err error) {
	if flag.NArg() > 0 {
		return fmt.Errorf("argument %q was not expected; see bench -h", flag.Arg(0))
	}
	b := &bench{quick: quick, host: lookAtHost()}
	if b.only, err = regexp.Compile(only); err != nil {
		return err
	}
	if b.grailvm, err = place.Program("grailvm"); err != nil {
		return err
	}
	var stop context.CancelFunc
	b.ctx, stop = signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	var why string
	if b.engine, b.kvm, why, err = engine.Choose(want); err != nil {
		return err
	}
	if b.kvm != nil {
		defer b.kvm.Close()
	}
	if why != "" {
		b.progress("%s", why)
	}
	if b.dir, err = os.MkdirTemp(dir, "grail-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	defer b.stopDaemon()

	head := b.host.describe(b.engine)
	begin := time.Now()
	all, stolen := ticks()
	var results []Result
	var failed []error
	for _, s := range suites {
		if b.ctx.Err() != nil {
			return errors.New("interrupted")
		}
		if !b.wanted(s.names...) {
			continue
		}
		if quick && s.slow && only == "" {
			b.progress("%s: left out of a quick run", strings.Join(s.names, ", "))
			continue
		}
		rs, err := s.run(b)
		switch {
		case errors.Is(err, errSkipped):
			b.progress("%s: %v", strings.Join(s.names, ", "), err)
		case err != nil:
			failed = append(failed, fmt.Errorf("%s: %w", strings.Join(s.names, ", "), err))
			b.progress("%v", failed[len(failed)-1])
		}
		for _, r := range rs {
			if b.wanted(r.Name) {
				results = append(results, r)
			}
		}
	}
	b.progress("%d benchmarks in %.0f s", len(results), time.Since(begin).Seconds())
	if len(results) == 0 && len(failed) == 0 {
		return fmt.Errorf("no benchmark matches %q", only)
	}
	allNow, stolenNow := ticks()
	head += fmt.Sprintf(", %.0f %% of the processors' time taken by others on the same hardware", 100*float64(stolenNow-stolen)/float64(max(allNow-all, 1)))
	writeTable(os.Stdout, head, results)
	if out != "" {
		failed = append(failed, writeJSON(out, results))
	}
	return errors.Join(failed...)
}

// wanted reports whether one of names was asked for.
func (b *bench) wanted(names ...string) bool {
	for _, n := range names {
		if b.only.MatchString(n) {
			return true
		}
	}
	return false
}

// rounds returns how often to run something.
func (b *bench) rounds(quick, full int) int {
	if b.quick {
		return quick
	}
	return full
}

// progress tells a person what goes on.
func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}
