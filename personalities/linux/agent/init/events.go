package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// events are the kernel's reports of devices that come and go (netlink(7), NETLINK_KOBJECT_UEVENT).
type events struct{ fd int }

func newEvents() (*events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, os.NewSyscallError("socket for device events", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind the socket for device events", err)
	}
	return &events{fd}, nil
}

// await calls look at once and after every event until it succeeds, or the time is over; then it returns look's error.
func await(limit time.Duration, look func() error) error {
	e, err := newEvents() // nobody else's: an event is read once
	if err != nil {
		return err
	}
	defer unix.Close(e.fd)
	end := time.Now().Add(limit)
	for {
		err := look()
		if err == nil {
			return nil
		}
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("%w (waited for %v)", err, limit)
		}
		poll := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return os.NewSyscallError("wait for device events", err)
		}
		e.drain()
	}
}

// drain forgets the events that have come; lost ones (ENOBUFS) are events, too.
func (e *events) drain() {
	var b [8192]byte
	for {
		if _, _, err := unix.Recvfrom(e.fd, b[:], 0); err == unix.EAGAIN {
			return
		} else if err != nil && err != unix.EINTR && err != unix.ENOBUFS {
			return
		}
	}
}
