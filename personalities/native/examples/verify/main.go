// Command verify is a native personality that writes to a disk and reads back what it wrote, from several
// goroutines, with flushes in between. It ends with exit code 1 at the first I/O error or difference; a stall
// is neither, but the longest one is reported. It is what runs while driver VMs are crashed.
//
//	verify -disk d -time 30s
//	verify -serve -disk d -seed N
//	verify -check -image FILE -seed N -flushed W:OP,W:OP…
//	verify -check -image FILE -seed N -table
//
// What each worker does depends on the seed alone. It prints "flushed W OP" when a flush that follows the
// worker's first OP operations was acknowledged; after a power cut, -check finds out from those numbers
// whether everything is there that must be. SIGINT and SIGTERM end it early, but in order.
//
// With -serve it takes commands from standard input, one a line, and goes on after errors: see server. What "table" prints there, -check -table
// takes on standard input.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/grailos/grail/hv/guest"
)

func main() {
	name := flag.String("disk", "d", "disk to work on; what it holds is overwritten")
	size := flag.Int64("mib", 64, "how much of the disk is used, MiB")
	seed := flag.Uint64("seed", 1, "what is done")
	workers := flag.Int("workers", 4, "goroutines")
	limit := flag.Duration("time", 0, "when to stop; 0 means after -ops")
	ops := flag.Int("ops", 10000, "operations of each worker, if there is no -time")
	image := flag.String("image", "", "host file to use instead of the disk")
	check := flag.Bool("check", false, "check what an earlier run left")
	flushed := flag.String("flushed", "", "with -check: the last operation of each worker that a flush covered")
	acks := flag.Bool("acks", false, "print acknowledged flushes")
	serve := flag.Bool("serve", false, "take commands from standard input")
	dirty := flag.Bool("dirty", false, "with -serve: the disk may hold anything in the beginning, and not zeros")
	table := flag.Bool("table", false, "with -check: the table on standard input says what must be there")
	flag.Parse()
	r := &Run{Seed: *seed, Workers: *workers, Ops: *ops, Time: *limit, Area: *size << 20}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	r.Stop = ctx.Done()
	if *acks {
		r.Flushed = func(worker, op int) { fmt.Printf("flushed %d %d\n", worker, op) }
	}
	var err error
	switch {
	case *serve:
		err = runServer(r, *name, *image, *dirty)
	case *check && *table:
		err = runTable(r, *name, *image)
	default:
		err = run(r, *name, *image, *check, *flushed)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "verify:", err)
		os.Exit(1)
	}
}

func run(r *Run, name, image string, check bool, flushed string) error {
	disk, err := open(name, image)
	if err != nil {
		return err
	}
	if check {
		marks, err := parseMarks(flushed)
		if err != nil {
			return err
		}
		n, err := r.Check(disk, marks)
		if err == nil {
			fmt.Printf("verify: %d blocks are as new as they must be\n", n)
		}
		return err
	}
	last := time.Now()
	r.Progress = func(s Stats) {
		if time.Since(last) >= time.Second {
			last = time.Now()
			fmt.Printf("verify: %d operations, longest took %d ms\n", s.Ops, s.Longest.Milliseconds())
		}
	}
	s, err := r.Do(disk)
	if err == nil {
		fmt.Printf("verify: ok: %d operations, %d blocks written, %d verified, %d flushes, %.1f s, longest took %d ms, rang again %d times\n",
			s.Ops, s.Written, s.Verified, s.Flushes, s.Time.Seconds(), s.Longest.Milliseconds(), rekicks(disk))
	}
	return err
}

func runServer(r *Run, name, image string, dirty bool) error {
	disk, err := open(name, image)
	if err != nil {
		return err
	}
	return r.serve(disk, os.Stdin, os.Stdout, dirty)
}

func runTable(r *Run, name, image string) error {
	disk, err := open(name, image)
	if err != nil {
		return err
	}
	n, err := r.checkTable(disk, os.Stdin)
	if err == nil {
		fmt.Printf("verify: %d blocks are as the table says\n", n)
	}
	return err
}

func rekicks(d Disk) uint64 {
	if d, ok := d.(*guest.Disk); ok {
		return d.Rekicks()
	}
	return 0
}

// open returns the disk, or the host file in its stead.
func open(name, image string) (Disk, error) {
	if image == "" {
		return guest.OpenDisk(name)
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	return &fileDisk{f, size}, err
}

// fileDisk is a host file as a Disk.
type fileDisk struct {
	*os.File
	size int64
}

func (d *fileDisk) Size() int64  { return d.size }
func (d *fileDisk) Flush() error { return d.Sync() }

// parseMarks reads "worker:op,worker:op…".
func parseMarks(s string) (map[int]int, error) {
	marks := map[int]int{}
	for m := range strings.SplitSeq(s, ",") {
		if m == "" {
			continue
		}
		w, o, ok := strings.Cut(m, ":")
		worker, err1 := strconv.Atoi(w)
		op, err2 := strconv.Atoi(o)
		if !ok || err1 != nil || err2 != nil {
			return nil, fmt.Errorf("-flushed %q: expected WORKER:OPERATION", m)
		}
		marks[worker] = op
	}
	return marks, nil
}
