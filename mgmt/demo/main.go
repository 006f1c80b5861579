package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/sandbox"
)

func main() {
	d := demo{out: os.Stdout}
	flag.StringVar(&d.engine, "engine", "", "engine of drivers and native VMs: kvm or process (default: the best that works here)")
	flag.StringVar(&d.src, "src", "", "directory to hash (default: the Go installation's src)")
	flag.BoolVar(&d.native, "native", false, "only the first part, which needs no QEMU and nothing from the network")
	flag.BoolVar(&d.verbose, "v", false, "print also what the programs in the VMs print")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: takes no arguments, not %q; see demo -help\n", flag.Args())
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	err := d.run(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
		fmt.Fprintln(os.Stderr, "demo: FAILED")
		os.Exit(1)
	}
}

// demo is one run of the program.
type demo struct {
	engine, src string
	verbose     bool
	native      bool // only the first part
	out         *os.File

	dir   string // temporary, everything lies in it
	cache string // what was fetched, kept for the next run
	box   *sandbox.Sandbox
	url   string // of the Linux VM's published port
}

// Names within the demo.
const (
	driverName = "blk0"
	vmName     = "fshash"
)

// say prints one line of the account.
func (d *demo) say(what, format string, a ...any) {
	fmt.Fprintf(d.out, "%-10s %s\n", what, fmt.Sprintf(format, a...))
}

// run is the demo from making the disks to the verdict. Nothing of it is left afterwards.
func (d *demo) run(ctx context.Context) (err error) {
	begin := time.Now()
	if d.src == "" {
		if d.src, err = goSource(ctx); err != nil {
			return err
		}
	}
	// Debian's packages make it a link.
	if d.src, err = filepath.EvalSymlinks(d.src); err != nil {
		return err
	}
	bin, err := os.Executable()
	if err != nil {
		return err
	}
	bin = filepath.Dir(bin)
	if d.dir, err = os.MkdirTemp("", "grail-demo-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.dir)

	d.cache = filepath.Join(filepath.Dir(bin), "build", "demo")
	d.box = sandbox.New(bin, d.dir)
	files, image, err := d.disks(ctx)
	if err != nil {
		return err
	}
	root, want := "", ""
	if !d.native {
		if root, want, err = d.linuxDisk(ctx); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Fprint(os.Stderr, d.box.Account(context.WithoutCancel(ctx)))
		}
		err = errors.Join(err, d.box.Clean())
	}()
	if err := d.start(ctx, image, root); err != nil {
		return err
	}
	w := &work{d: d}
	if err := w.run(ctx); err != nil {
		return err
	}
	if err := d.compare(ctx, files); err != nil {
		return err
	}
	if !d.native {
		if err := d.linux(ctx, want); err != nil {
			return err
		}
	}
	d.say("errors", "0, after %.1f s in all", time.Since(begin).Seconds())
	return nil
}

// start starts graild and the driver VM.
func (d *demo) start(ctx context.Context, image, root string) error {
	begin := time.Now()
	if _, err := d.box.Do(ctx, "daemon", "start"); err != nil {
		return err
	}
	d.say("graild", "started in %s", ms(time.Since(begin)))
	begin = time.Now()
	args := []string{"driver", "create", "blk", driverName, "--disk", "src=" + image + ":ro", "--disk", "out=" + d.scratch()}
	if root != "" {
		args = append(args, "--disk", "root="+root, "--socket")
	}
	if d.engine != "" {
		args = append(args, "--engine", d.engine)
	}
	if _, err := d.box.Do(ctx, args...); err != nil {
		return err
	}
	took := time.Since(begin)
	v, err := d.box.Driver(ctx, driverName)
	if err != nil {
		return err
	}
	d.say("driver VM", "%s on engine %s, ready in %s", driverName, v.EngineUsed, ms(took))
	for _, n := range v.Notes {
		d.say("", "note: %s", n)
	}
	return nil
}

// ms formats a duration in milliseconds.
func ms(t time.Duration) string { return fmt.Sprintf("%.0f ms", float64(t.Microseconds())/1000) }
