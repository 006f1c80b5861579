package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Port is an open virtio-serial port. One goroutine may read, and any write.
type Port struct {
	fd         int
	read       waiter
	mu         sync.Mutex // held for a whole Write
	write      waiter
	wasReset   bool
	hadTraffic bool
}

// waiter waits for a change of the port's state. A port without a host is always "hung up", so only the edges tell anything
// (epoll(7), EPOLLET).
type waiter struct{ epoll int }

func newWaiter(fd int, events uint32) (waiter, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return waiter{}, err
	}
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events | unix.EPOLLET, Fd: int32(fd)})
	return waiter{ep}, err
}

func (w waiter) wait() error {
	for {
		var events [1]unix.EpollEvent
		if _, err := unix.EpollWait(w.epoll, events[:], -1); err != unix.EINTR {
			return err
		}
	}
}

// FindPort returns the device file below dev of the port with the name, as class (/sys/class/virtio-ports) tells.
func FindPort(class, dev, name string) (string, error) {
	list, err := filepath.Glob(filepath.Join(class, "*", "name"))
	if err != nil {
		return "", err
	}
	for _, file := range list {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == name {
			return filepath.Join(dev, filepath.Base(filepath.Dir(file))), nil
		}
	}
	return "", fmt.Errorf("port %s: %w", name, os.ErrNotExist)
}

// OpenPort opens a port's device file, which only one can have open at a time.
func OpenPort(path string) (*Port, error) {
	// A write that may block would make the kernel spin until the host has taken it.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	p := &Port{fd: fd}
	if p.read, err = newWaiter(fd, unix.EPOLLIN|unix.EPOLLOUT); err == nil {
		p.write, err = newWaiter(fd, unix.EPOLLOUT)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("epoll", err)
	}
	return p, nil
}

// Read waits for bytes of the host. Errors: ErrReset, once, when the host has left the port; then it waits for the next.
func (p *Port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case n > 0:
			p.wasReset, p.hadTraffic = false, true
			return n, nil
		case err == nil: // no host
			if p.hadTraffic && !p.wasReset {
				p.wasReset = true
				return 0, ErrReset
			}
		case err == unix.EINTR:
			continue
		case err != unix.EAGAIN:
			return 0, os.NewSyscallError("read the agent's port", err)
		}
		if err := p.read.wait(); err != nil {
			return 0, os.NewSyscallError("wait for the agent's port", err)
		}
	}
}

// Write gives b to the host, and waits as long as there is none.
func (p *Port) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	done := 0
	for done < len(b) {
		n, err := unix.Write(p.fd, b[done:])
		switch {
		case n > 0:
			done += n
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			if err := p.write.wait(); err != nil {
				return done, os.NewSyscallError("wait for the agent's port", err)
			}
		case err != nil:
			return done, os.NewSyscallError("write to the agent's port", err)
		}
	}
	return done, nil
}
