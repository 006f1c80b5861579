package vfs

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// epoll is an epoll instance: a host one, whose entries are kept by guest descriptor and file, as Linux does.
type epoll struct {
	noIO
	t    *Table
	fd   int
	mu   sync.Mutex
	regs map[watchKey]watchReg
}

type watchKey struct {
	fd int32 // guest descriptor at the time it was added
	f  *file
}

// watchReg is one entry. A host descriptor can be in a host epoll once, so a second guest descriptor for the
// same file gets a duplicate of its own.
type watchReg struct {
	host int
	own  bool
}

func (t *Table) sysEpollCreate(flags uint64) (uint64, unix.Errno) {
	if flags&^uint64(unix.EPOLL_CLOEXEC) != 0 {
		return 0, unix.EINVAL
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return 0, errnoOf(err)
	}
	return t.open(&epoll{t: t, fd: fd, regs: make(map[watchKey]watchReg)}, unix.O_RDWR|int(flags))
}

func (p *epoll) stat(st *stat) { st.mode = 0o600 }
func (p *epoll) pollFD() int   { return p.fd }
func (p *epoll) name() string  { return "anon_inode:[eventpoll]" }

func (p *epoll) release() {
	p.mu.Lock()
	regs := p.regs
	p.regs = nil
	p.mu.Unlock()
	for k, r := range regs {
		k.f.watchMu.Lock()
		delete(k.f.watchers, p)
		k.f.watchMu.Unlock()
		p.forget(r)
	}
	unix.Close(p.fd)
}

// epollIn are the bits of an entry that the host may see.
const epollIn = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLOUT | unix.EPOLLERR | unix.EPOLLHUP | unix.EPOLLRDNORM |
	unix.EPOLLRDBAND | unix.EPOLLWRNORM | unix.EPOLLWRBAND | unix.EPOLLRDHUP | unix.EPOLLET | unix.EPOLLONESHOT | unix.EPOLLEXCLUSIVE

func (t *Table) sysEpollCtl(c *Call, epfd, op, fd, addr uint64) (uint64, unix.Errno) {
	var ev unix.EpollEvent
	if op != unix.EPOLL_CTL_DEL {
		b := c.small[:12]
		if e := c.copyIn(addr, b); e != 0 {
			return 0, e
		}
		ev.Events = binary.LittleEndian.Uint32(b) & epollIn
		ev.Fd = int32(binary.LittleEndian.Uint32(b[4:]))
		ev.Pad = int32(binary.LittleEndian.Uint32(b[8:]))
	}
	pf, e := t.get(epfd)
	if e != 0 {
		return 0, e
	}
	defer pf.put()
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	p, ok := pf.obj.(*epoll)
	if !ok || f == pf {
		return 0, unix.EINVAL
	}
	host := f.obj.pollFD()
	if host < 0 {
		return 0, unix.EPERM
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := watchKey{int32(fd), f}
	reg, found := p.regs[key]
	switch op {
	case unix.EPOLL_CTL_ADD:
		if found {
			return 0, unix.EEXIST
		}
		return 0, p.add(key, host, &ev)
	case unix.EPOLL_CTL_MOD:
		if !found {
			return 0, unix.ENOENT
		}
		return 0, errnoOf(unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, reg.host, &ev))
	case unix.EPOLL_CTL_DEL:
		if !found {
			return 0, unix.ENOENT
		}
		p.remove(key, reg)
		return 0, 0
	}
	return 0, unix.EINVAL
}

// add enters key; p.mu is held.
func (p *epoll) add(key watchKey, host int, ev *unix.EpollEvent) unix.Errno {
	if p.regs == nil {
		return unix.EBADF
	}
	if p.t.watched.Load() >= maxWatches {
		return unix.ENOSPC
	}
	reg := watchReg{host: host}
	err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, host, ev)
	if err == unix.EEXIST {
		if p.t.copies.Load() >= maxCopies {
			return unix.ENOSPC
		}
		d, err := unix.FcntlInt(uintptr(host), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return errnoOf(err)
		}
		reg = watchReg{d, true}
		if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, d, ev); err != nil {
			unix.Close(d)
			return errnoOf(err)
		}
		p.t.copies.Add(1)
	} else if err != nil {
		return errnoOf(err)
	}
	p.t.watched.Add(1)
	p.regs[key] = reg
	key.f.watchMu.Lock()
	if key.f.watchers == nil {
		key.f.watchers = make(map[*epoll]struct{})
	}
	key.f.watchers[p] = struct{}{}
	key.f.watchMu.Unlock()
	return 0
}

// remove takes key out; p.mu is held.
func (p *epoll) remove(key watchKey, reg watchReg) {
	delete(p.regs, key)
	_ = unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, reg.host, nil)
	p.forget(reg)
}

// forget gives back what an entry took.
func (p *epoll) forget(reg watchReg) {
	p.t.watched.Add(-1)
	if reg.own {
		unix.Close(reg.host)
		p.t.copies.Add(-1)
	}
}

// Bounds of a guest's epoll entries: a descriptor that is closed while its file lives on leaves its entry.
const (
	maxWatches = 1 << 15
	maxCopies  = 1024
)

// unwatch takes f out of every epoll instance. It is called when the last reference has gone, before the
// host descriptor is closed: others may share it, so closing would not do.
func (f *file) unwatch() {
	f.watchMu.Lock()
	watchers := f.watchers
	f.watchers = nil
	f.watchMu.Unlock()
	for p := range watchers {
		p.mu.Lock()
		for k, r := range p.regs {
			if k.f == f {
				p.remove(k, r)
			}
		}
		p.mu.Unlock()
	}
}

// maxEvents bounds the events of one epoll_wait.
const maxEvents = 512

func (t *Table) sysEpollWait(c *Call, epfd, addr, n uint64, timeout time.Duration) (uint64, unix.Errno) {
	if int32(n) <= 0 {
		return 0, unix.EINVAL
	}
	f, e := t.get(epfd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	p, ok := f.obj.(*epoll)
	if !ok {
		return 0, unix.EINVAL
	}
	most := int(min(n&0x7fffffff, maxEvents))
	if cap(c.events) < most {
		c.events = make([]unix.EpollEvent, most)
	}
	events := c.events[:most]
	var deadline time.Time
	for {
		got, err := unix.EpollWait(p.fd, events, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, errnoOf(err)
		}
		if got > 0 || timeout == 0 {
			return uint64(got), c.putEvents(addr, events[:got])
		}
		if timeout > 0 {
			if deadline.IsZero() {
				deadline = time.Now().Add(timeout)
			} else if timeout = time.Until(deadline); timeout <= 0 {
				return 0, 0
			}
		}
		c.one[0] = unix.PollFd{Fd: int32(p.fd), Events: unix.POLLIN}
		m, err := c.Wait.Poll(c.one[:], timeout)
		if err != nil {
			return 0, errnoOf(err)
		}
		if m == 0 && timeout > 0 {
			timeout = 0 // one last look
		}
	}
}

// putEvents writes events as packed struct epoll_event.
func (c *Call) putEvents(addr uint64, events []unix.EpollEvent) unix.Errno {
	b := c.bounceBuf()[:len(events)*12]
	for i, ev := range events {
		binary.LittleEndian.PutUint32(b[i*12:], ev.Events)
		binary.LittleEndian.PutUint32(b[i*12+4:], uint32(ev.Fd))
		binary.LittleEndian.PutUint32(b[i*12+8:], uint32(ev.Pad))
	}
	return c.copyOut(addr, b)
}

func (t *Table) sysEpollPwait(c *Call, a [6]uint64) (uint64, unix.Errno) {
	return c.masked(a[4], a[5], func() (uint64, unix.Errno) {
		return t.sysEpollWait(c, a[0], a[1], a[2], ms(a[3]))
	})
}

func (t *Table) sysEpollPwait2(c *Call, a [6]uint64) (uint64, unix.Errno) {
	timeout := time.Duration(-1)
	if a[3] != 0 {
		var e unix.Errno
		if timeout, e = c.timespec(a[3]); e != 0 {
			return 0, e
		}
	}
	return c.masked(a[4], a[5], func() (uint64, unix.Errno) {
		return t.sysEpollWait(c, a[0], a[1], a[2], timeout)
	})
}
