// Package starter starts a graild in the background where none runs.
package starter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
)

// ReadyFD is the descriptor on which a graild started by Ensure writes one line once it serves, or why it does not.
const ReadyFD = 3

// Ready is that line; any other is an error.
const Ready = "ready"

// AlreadyRunning is the line of a graild that found another one in its place.
const AlreadyRunning = "running"

// How long a new graild may take to adopt its predecessor's VMs and serve, and how often it is asked.
const (
	startTimeout = 60 * time.Second
	askPause     = 5 * time.Millisecond
	patience     = 250 * time.Millisecond
)

// Ensure returns a client of the graild of dirs, which it starts when none answers. One that runs from another program
// file than the installed one is replaced first: VMs do not notice.
func Ensure(ctx context.Context, dirs place.Dirs) (*api.Client, error) {
	c := api.NewClient(dirs.API())
	v, err := c.Version(ctx)
	if err == nil {
		if !outdated(v) {
			return c, nil
		}
		err = c.Shutdown(ctx)
	}
	if err != nil && !api.Down(err) {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if err := start(ctx, dirs); err != nil {
			return nil, fmt.Errorf("start graild: %w", err)
		}
		// Whoever lost a race for the place waits for the winner, but not for ever: it may be one that is just ending.
		for until := time.Now().Add(patience); time.Now().Before(until); {
			if v, err = c.Version(ctx); err == nil && !outdated(v) || err != nil && !api.Down(err) {
				return c, err
			}
			select {
			case <-ctx.Done():
				return nil, fmt.Errorf("graild does not answer; see %s: %w", dirs.Log(), err)
			case <-time.After(askPause):
			}
		}
	}
}

// outdated reports whether a graild runs from another program file than the one that would be started now.
func outdated(v api.Version) bool {
	path, err := place.Program("graild")
	if err != nil {
		return false
	}
	build, err := place.Build(path)
	return err == nil && v.Build != build
}

// start starts graild, detached, and returns when it serves.
func start(ctx context.Context, dirs place.Dirs) error {
	path, err := place.Program("graild")
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	env := append(os.Environ(), "GRAIL_STATE_DIR="+dirs.State, "GRAIL_RUN_DIR="+dirs.Run)
	p, err := os.StartProcess(path, []string{"graild", "--background"}, &os.ProcAttr{
		Dir: "/", Env: env, Files: []*os.File{null, null, null, w}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	w.Close()
	if err != nil {
		return err
	}
	// It is not waited for: it outlives this process. Should it end first, the kernel cleans up when this one ends.
	defer func() { _ = p.Release() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = r.SetReadDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(r, 4096))
	line := strings.TrimSpace(string(b))
	switch {
	case line == Ready || line == AlreadyRunning:
		return nil
	case line != "":
		return errors.New(line)
	case err != nil:
		return err
	}
	return fmt.Errorf("it ended at once; see %s", dirs.Log())
}
