package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
)

// hangupCheck is how often a Wait looks whether its asker is still there.
const hangupCheck = 5 * time.Second

// acceptControl serves graild's connections for ever. Errors: the listening socket fails.
func (p *portal) acceptControl(fd int) error {
	if err := unix.SetNonblock(fd, false); err != nil {
		return fmt.Errorf("control socket on descriptor %d: %w", fd, err)
	}
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			go p.control(c)
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
			<-time.After(acceptPause)
		default:
			return fmt.Errorf("control socket: %w", err)
		}
	}
}

// control answers one connection's requests.
func (p *portal) control(fd int) {
	c := hv.NewConn(fd)
	defer c.Close()
	for {
		var req hv.PortalRequest
		fds, err := c.Receive(&req)
		closeFDs(fds)
		if err != nil {
			return
		}
		var r hv.PortalResponse
		var send []int
		switch req.Op {
		case hv.PortalWait:
			if r.State = p.wait(fd, req.Since); r.State == nil {
				return
			}
		case hv.PortalFetch:
			r.Attachment, send, err = p.fetch(req.ID)
		case hv.PortalAttached:
			err = p.attached(req.ID, req.Error)
		case hv.PortalDetached:
			err = p.detached(req.ID)
		default:
			err = fmt.Errorf("unknown request %q", req.Op)
		}
		if err != nil {
			r.Error = err.Error()
		}
		err = c.Send(r, send...)
		closeFDs(send)
		if err != nil {
			return
		}
	}
}

// wait returns the state once its number is not since; nil when the asker on fd is gone.
func (p *portal) wait(fd int, since uint64) *hv.PortalState {
	for {
		p.mu.Lock()
		s, changed := p.state(), p.changed
		p.mu.Unlock()
		if s.Seq != since {
			return s
		}
		select {
		case <-changed:
		case <-time.After(hangupCheck):
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			if n, err := unix.Poll(poll, 0); n > 0 && err == nil {
				return nil
			}
		}
	}
}

// fetch returns an attachment with copies of its descriptors.
func (p *portal) fetch(id uint64) (*hv.Attachment, []int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.find(id)
	if a == nil {
		return nil, nil, errGone
	}
	var fds []int
	for _, fd := range a.fds {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeFDs(fds)
			return nil, nil, fmt.Errorf("duplicate descriptor: %w", err)
		}
		fds = append(fds, n)
	}
	a.fetched = true
	return &a.Attachment, fds, nil
}

var errGone = fmt.Errorf("there is no such attachment any more")

// attached takes notice that the driver VM serves id, or that it does not.
func (p *portal) attached(id uint64, failure string) error {
	p.mu.Lock()
	a := p.find(id)
	p.mu.Unlock()
	if a == nil {
		return errGone
	}
	if failure != "" {
		a.disconnect(fmt.Errorf("%s", failure))
	}
	return nil
}

// detached takes notice that the driver VM does not serve id. That of an attachment which is not leaving is
// ignored: it may be attached again.
func (p *portal) detached(id uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.find(id); a != nil && a.leaving {
		p.drop(a)
	}
	return nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
