package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/grailos/grail/mgmt/sandbox"
)

// campaign is one run of the program.
type campaign struct {
	bin     string // folder of Grail's programs
	crashes int
	engine  string
	seed    uint64
	systems bool   // with Linux VMs
	cache   string // folder in which kernels are, perhaps
	out     io.Writer

	dir string // temporary, everything lies in it
	box *sandbox.Sandbox
}

// Names and sizes within a campaign.
const (
	driver   = "blk0"
	disk     = "d"
	diskSize = 64 << 20
	// maxPause is the longest time between a recovery and the next crash.
	maxPause = 60 * time.Millisecond
	// maxNetPause is the same for a switch: TCP doubles its patience with each segment that is lost again, and has to come round.
	maxNetPause = time.Second
	// reportEvery is the number of crashes between two lines of progress.
	reportEvery = 100
)

func (c *campaign) say(format string, a ...any) { fmt.Fprintf(c.out, "campaign: "+format+"\n", a...) }

// run is the whole campaign. Nothing of it is left afterwards.
func (c *campaign) run(ctx context.Context) (err error) {
	begin := time.Now()
	c.say("%d crashes, seed %d", c.crashes, c.seed)
	if c.dir, err = os.MkdirTemp("", "grail-campaign-"); err != nil {
		return err
	}
	defer os.RemoveAll(c.dir)
	c.box = sandbox.New(c.bin, c.dir)
	defer func() { err = errors.Join(err, c.box.Clean()) }()
	if c.systems {
		if err := c.linux(ctx); err != nil {
			return err
		}
		c.say("errors: 0, after %.0f s", time.Since(begin).Seconds())
		return nil
	}
	image, err := c.newDisk()
	if err != nil {
		return err
	}
	if _, err := c.box.Do(ctx, c.args("driver", "create", "blk", driver, "--disk", disk+"="+image)...); err != nil {
		return err
	}
	w := &writer{c: c}
	if err := w.start(ctx); err != nil {
		return err
	}
	err = errors.Join(c.storm(ctx, driver, maxPause, w.ended), w.stop())
	if err != nil {
		return err
	}
	if err := c.sum(ctx, driver); err != nil {
		return err
	}
	if _, err := c.box.Do(ctx, "driver", "rm", driver); err != nil {
		return err
	}
	n, err := w.check(ctx, image)
	if err != nil {
		return fmt.Errorf("the disk afterwards: %w", err)
	}
	c.say("%s; errors: 0, after %.0f s", n, time.Since(begin).Seconds())
	return nil
}

// newDisk makes a file for a disk.
func (c *campaign) newDisk() (path string, err error) {
	path = filepath.Join(c.dir, "disk.img")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	return path, errors.Join(f.Truncate(diskSize), f.Close())
}

// args adds the engine to a command of grailctl.
func (c *campaign) args(args ...string) []string {
	if c.engine != "" {
		args = append(args, "--engine", c.engine)
	}
	return args
}

// storm crashes a driver until there were enough crashes, or the work of its clients ends.
func (c *campaign) storm(ctx context.Context, driver string, pause time.Duration, ended <-chan struct{}) error {
	rnd := rand.New(rand.NewPCG(c.seed, 1))
	begin := time.Now()
	for n := 1; n <= c.crashes; n++ {
		how := sandbox.Hows[rnd.IntN(len(sandbox.Hows))]
		select {
		case <-time.After(time.Duration(rnd.Int64N(int64(pause)))): // the random moment
		case <-ended:
			return fmt.Errorf("its clients' work ended after %d crashes", n-1)
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err := c.box.Do(ctx, "driver", "crash", driver, "--how", how); err != nil {
			return fmt.Errorf("crash %d (%s): %w", n, how, err)
		}
		if err := c.box.Serving(ctx, driver, n); err != nil {
			return fmt.Errorf("crash %d (%s): %w", n, how, err)
		}
		if n%reportEvery == 0 {
			c.say("%d crashes, %.0f s", n, time.Since(begin).Seconds())
		}
	}
	return nil
}
