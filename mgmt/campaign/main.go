package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	c := campaign{out: os.Stdout}
	f := faults{campaign: &c}
	flag.BoolVar(&c.systems, "linux", false, "crash drivers under Linux VMs: a block driver under fio, then a net driver under iperf3")
	flag.IntVar(&c.crashes, "crashes", 0, "crash one block driver so often under a verifying writer; 1000 with -linux")
	flag.StringVar(&c.engine, "engine", "", "engine of all VMs: kvm or process (default: both, where they work)")
	flag.Uint64Var(&c.seed, "seed", rand.Uint64N(maxSeed), "seed of all that is random")
	flag.BoolVar(&f.quick, "quick", false, "three minutes, however many faults that is")
	flag.IntVar(&f.count, "faults", 10000, "how many faults")
	flag.DurationVar(&f.limit, "time", time.Hour, "how long, at most")
	flag.IntVar(&f.rigs, "rigs", 3, "how many faults at a time, each in a Grail of its own")
	one := flag.Uint64("one", 0, "bring about the one fault of this seed")
	only := flag.String("kinds", "", "comma-separated kinds of fault to choose from (default: all)")
	flag.StringVar(&f.results, "o", "", "file that takes the results as JSON")
	flag.StringVar(&f.keep, "keep", "build/campaign", "folder for evidence about faults that were LOST or SILENT")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	context.AfterFunc(ctx, func() { time.AfterFunc(signalPause, stop) })
	bin, err := os.Executable()
	if err == nil {
		c.bin = filepath.Dir(bin)
		c.cache = filepath.Join(c.bin, "../build")
		flag.Visit(func(g *flag.Flag) {
			if g.Name == "one" {
				f.only = one
			}
		})
		if f.quick {
			f.limit = quickLimit
		}
		f.linux = !f.quick
		switch {
		case c.systems || c.crashes > 0:
			c.crashes = cmp.Or(c.crashes, 1000)
			err = c.run(ctx)
		default:
			if f.among, err = choose(*only); err == nil {
				err = f.run(ctx)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "campaign: FAILED:", err)
		os.Exit(1)
	}
}

// signalPause is after how long a second signal ends the program at once, and leaves everything as it is. Until then it is the first one, sent twice:
// timeout(1) signals its child and the child's group.
const signalPause = 2 * time.Second

// The quick campaign ends by the time. What it needs at the end is a part of its three minutes.
const (
	quickLimit = 165 * time.Second
	maxQuick   = 1 << 20
)

// choose returns the kinds with these names, all for none.
func choose(names string) ([]kind, error) {
	if names == "" {
		return kinds, nil
	}
	var list []kind
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
		if i < 0 {
			var have []string
			for _, k := range kinds {
				have = append(have, k.name)
			}
			return nil, fmt.Errorf("-kinds: there is no kind of fault %q; there are %s", name, strings.Join(have, ", "))
		}
		list = append(list, kinds[i])
	}
	return list, nil
}
