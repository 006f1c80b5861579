package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/images/nested/plan"
)

// mountAll mounts the kernel's file systems and a temporary one.
func mountAll() error {
	for _, m := range []struct{ kind, dir, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"tmpfs", "/dev/shm", ""},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/run", "mode=755"},
		{"cgroup2", "/sys/fs/cgroup", ""},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil && m.kind != "cgroup2" {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := unix.Sethostname([]byte("nested")); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return loopback()
}

// loopback brings the loopback interface up, which tests of sockets expect.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// loadAll loads the modules in order.
func loadAll(modules []string) plan.Result {
	begin := time.Now()
	r := plan.Result{Name: "modules"}
	for _, m := range modules {
		if err := load(m); err != nil {
			r.Error = fmt.Sprintf("load %s: %v", filepath.Base(m), err)
			break
		}
	}
	if r.Error == "" {
		if _, err := os.Stat("/dev/kvm"); err != nil {
			r.Error = err.Error()
		}
	}
	r.Seconds = time.Since(begin).Seconds()
	return r
}

func load(module string) error {
	fd, err := unix.Open(module, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FinitModule(fd, "", 0)
}

// uptime returns the seconds since the machine's kernel started.
func uptime() float64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano()).Seconds()
}
