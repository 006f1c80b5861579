package vhostuser_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/grailos/grail/ring/ringtest"
	"github.com/grailos/grail/ring/vhostuser"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// Environment by which the test binary becomes a block server process, to be killed.
const (
	envServe   = "RINGTEST_SERVE"   // socket to listen on
	envDisk    = "RINGTEST_DISK"    // backing file
	envSectors = "RINGTEST_SECTORS" // its size
	envDie     = "RINGTEST_DIE"     // if set: the number of the read or write in which to die
)

func TestMain(m *testing.M) {
	if path := os.Getenv(envServe); path != "" {
		fmt.Fprintln(os.Stderr, serveProcess(path))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// serveProcess serves one connection after the other until it is killed.
func serveProcess(path string) error {
	disk, err := os.OpenFile(os.Getenv(envDisk), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	sectors, err := strconv.ParseUint(os.Getenv(envSectors), 10, 64)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	die, _ := strconv.Atoi(os.Getenv(envDie))
	served := &mortalDisk{File: disk, die: die}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		h := &ringtest.BlkServer{Disk: served, Sectors: sectors, NQueues: 4, ID: "process", Batch: 3}
		if err := vhostuser.NewBackend(c.(*net.UnixConn), h).Serve(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// mortalDisk ends the process in the middle of a request.
type mortalDisk struct {
	*os.File
	n, die int
}

func (d *mortalDisk) io() {
	if d.n++; d.n == d.die {
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}

func (d *mortalDisk) ReadAt(b []byte, off int64) (int, error) {
	d.io()
	return d.File.ReadAt(b, off)
}

func (d *mortalDisk) WriteAt(b []byte, off int64) (int, error) {
	d.io()
	return d.File.WriteAt(b, off)
}

// openFDs returns the number of descriptors this process has open.
func openFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("needs /proc:", err)
	}
	return len(d)
}

// checkFDs fails the test when it ends with another number of descriptors than it began with.
func checkFDs(t testing.TB) {
	t.Helper()
	// The runtime's poller opens its descriptors on first use.
	c, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "warm")})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	before := openFDs(t)
	t.Cleanup(func() {
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
}

// serve runs back ends for h on a new socket, one connection at a time, until the test ends, and returns the
// socket's path. Session errors other than the listed ones fail the test.
func serve(t testing.TB, h vhostuser.Handler, allowed ...error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			err = vhostuser.NewBackend(c.(*net.UnixConn), h).Serve(ctx)
			ok := err == nil || errors.Is(err, context.Canceled)
			for _, a := range allowed {
				ok = ok || errors.Is(err, a)
			}
			if !ok {
				t.Errorf("session: %v", err)
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		l.Close()
		<-done
	})
	return path
}

// fileConn returns the connection on a socket; fd stays the caller's.
func fileConn(fd int) (*net.UnixConn, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
