package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/images/initramfs"
	"github.com/grailos/grail/images/kernel"
	"github.com/grailos/grail/images/nested/plan"
)

func main() {
	opt := options{}
	flag.StringVar(&opt.build, "build", "build/nested", "folder for everything that is made")
	flag.DurationVar(&opt.limit, "limit", 10*time.Minute, "time after which a machine is stopped")
	kinds := flag.String("on", "", "run only the machines whose names match this regular expression: "+kindNames())
	flag.IntVar(&opt.memoryMiB, "memory", 1536, "its memory in MiB")
	only := flag.String("only", "", "run only the steps whose names match this regular expression")
	flag.StringVar(&opt.tests, "run", "", "of the Go tests, run only those that match (go test -run)")
	flag.IntVar(&opt.count, "count", 1, "run the Go tests so many times (go test -count)")
	flag.StringVar(&opt.qemuArgs, "qemu", "", "further arguments of QEMU, separated by spaces")
	flag.BoolVar(&opt.makeOnly, "make", false, "only make the machine's files")
	flag.BoolVar(&opt.verbose, "v", false, "print the machine's console and what every step printed")
	flag.Parse()
	var err error
	if opt.only, err = regexp.Compile(*only); err == nil {
		opt.kinds, err = regexp.Compile(*kinds)
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
		err = run(ctx, &opt)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test-nested:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	build     string
	limit     time.Duration
	memoryMiB int
	only      *regexp.Regexp // steps
	kinds     *regexp.Regexp // machines
	tests     string
	count     int
	qemuArgs  string
	makeOnly  bool
	verbose   bool
}

// errFailed ends the program after everything has been said.
var errFailed = errors.New("failed")

func run(ctx context.Context, opt *options) error {
	if err := findTools(); err != nil {
		return err
	}
	abs, err := filepath.Abs(opt.build)
	if err != nil {
		return err
	}
	opt.build = abs
	begin := time.Now()
	k, err := kernel.Fetch(ctx, filepath.Join(opt.build, "kernel"), "amd64")
	if err != nil {
		return err
	}
	var t initramfs.Tree
	var p plan.Plan
	modules, err := k.Modules("kvm-amd")
	if err != nil {
		return err
	}
	for _, m := range modules {
		path := "/modules/" + m.Name + ".ko"
		t.Data(path, m.Data, 0o644)
		p.Modules = append(p.Modules, path)
	}
	if p.Steps, err = makeSteps(ctx, opt, &t); err != nil {
		return err
	}
	image := filepath.Join(opt.build, "initramfs")
	b, err := json.MarshalIndent(&p, "", "\t")
	if err != nil {
		return err
	}
	t.Data(plan.Path, b, 0o644)
	if err := t.Write(image); err != nil {
		return err
	}
	fmt.Printf("test-nested: %s, %d steps, made in %.1f s\n", k.Version, len(p.Steps), time.Since(begin).Seconds())
	if opt.makeOnly {
		return nil
	}
	ok, ran := true, 0
	for _, kind := range kinds {
		if !opt.kinds.MatchString(kind.name) {
			continue
		}
		ran++
		m := machine{kind: kind, kernel: k.Image, initramfs: image, results: filepath.Join(opt.build, "results-"+kind.name),
			console: filepath.Join(opt.build, "console-"+kind.name+".log"), opt: opt}
		begin = time.Now()
		if err := m.run(ctx); err != nil {
			return fmt.Errorf("on machine %s: %w", kind.name, err)
		}
		fmt.Printf("test-nested: machine %s, CPUs: %d, %.1f s\n", kind.name, kind.cpus, time.Since(begin).Seconds())
		ok = m.report(&p) && ok
	}
	switch {
	case ran == 0:
		return fmt.Errorf("no machine's name matches %q; there are %s", opt.kinds, kindNames())
	case !ok:
		return errFailed
	}
	fmt.Println("test-nested: all passed inside the emulated machines")
	return nil
}

// findTools looks for the programs that are needed, and names the packages of those that are missing.
func findTools() error {
	for _, t := range []struct{ program, pack string }{
		{qemu, "qemu-system-x86"}, {"mke2fs", "e2fsprogs"}, {"dpkg-deb", "dpkg"}, {"apt-get", "apt"}, {"go", "golang"},
	} {
		if _, err := findTool(t.program); err != nil {
			return fmt.Errorf("%s not found; install the package %s", t.program, t.pack)
		}
	}
	return nil
}
