package vfs

import (
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
)

// MaxFDs bounds a guest's descriptors. Where the host's own limit is lower than twice that, the guest gets half of it.
const MaxFDs = 4096

// slot is one guest descriptor.
type slot struct {
	f       *file
	cloexec bool
	cap     *abi.Cap // what SysCaps says about it; nil for ordinary descriptors
}

// get returns the file behind a guest descriptor with a reference, which the caller puts back.
func (t *Table) get(fd uint64) (*file, unix.Errno) {
	n := int32(fd)
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n < 0 || int(n) >= len(t.slots) || t.slots[n].f == nil {
		return nil, unix.EBADF
	}
	f := t.slots[n].f
	f.refs.Add(1)
	return f, 0
}

// install gives f the lowest free descriptor from least on. The slot's reference is new.
func (t *Table) install(f *file, least int, cloexec bool, c *abi.Cap) (int, unix.Errno) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fd := least
	for fd < len(t.slots) && t.slots[fd].f != nil {
		fd++
	}
	if fd >= t.most {
		return 0, unix.EMFILE
	}
	t.place(fd, slot{f, cloexec, c})
	return fd, 0
}

// place fills the free slot fd. The caller holds mu.
func (t *Table) place(fd int, s slot) {
	for fd >= len(t.slots) {
		t.slots = append(t.slots, slot{})
	}
	s.f.refs.Add(1)
	if s.cap != nil {
		s.cap.FD = int32(fd)
	}
	t.slots[fd] = s
}

// open installs a new object and returns its descriptor; on failure the object is released.
func (t *Table) open(o object, flags int) (uint64, unix.Errno) {
	f := newFile(o, flags&^unix.O_CLOEXEC)
	f.refs.Add(1)
	defer f.put()
	fd, e := t.install(f, 0, flags&unix.O_CLOEXEC != 0, nil)
	return uint64(fd), e
}

// drop empties one slot.
func (t *Table) drop(fd int) unix.Errno {
	t.mu.Lock()
	if fd < 0 || fd >= len(t.slots) || t.slots[fd].f == nil {
		t.mu.Unlock()
		return unix.EBADF
	}
	f := t.slots[fd].f
	t.slots[fd] = slot{}
	t.mu.Unlock()
	f.put()
	return 0
}

func (t *Table) sysClose(fd uint64) (uint64, unix.Errno) {
	return 0, t.drop(int(int32(fd)))
}

func (t *Table) sysCloseRange(first, last, flags uint64) (uint64, unix.Errno) {
	lo, hi := uint32(first), uint32(last)
	const cloexec = 4 // CLOSE_RANGE_CLOEXEC
	if flags&^uint64(cloexec|2) != 0 || lo > hi {
		return 0, unix.EINVAL
	}
	for fd := uint64(lo); fd <= uint64(hi) && fd < MaxFDs; fd++ {
		if flags&cloexec == 0 {
			t.drop(int(fd))
			continue
		}
		t.mu.Lock()
		if fd < uint64(len(t.slots)) {
			t.slots[fd].cloexec = true
		}
		t.mu.Unlock()
	}
	return 0, 0
}

func (t *Table) sysDup(fd uint64, least int, cloexec bool) (uint64, unix.Errno) {
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	n, e := t.install(f, least, cloexec, nil)
	return uint64(n), e
}

func (t *Table) sysDup2(old, new uint64) (uint64, unix.Errno) {
	if int32(old) == int32(new) {
		f, e := t.get(old)
		if e != 0 {
			return 0, e
		}
		f.put()
		return uint64(uint32(new)), 0
	}
	return t.sysDup3(old, new, 0)
}

func (t *Table) sysDup3(old, new, flags uint64) (uint64, unix.Errno) {
	if flags&^uint64(unix.O_CLOEXEC) != 0 || int32(old) == int32(new) {
		return 0, unix.EINVAL
	}
	f, e := t.get(old)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	n := int(int32(new))
	if n < 0 || n >= t.most {
		return 0, unix.EBADF
	}
	t.mu.Lock()
	var was *file
	if n < len(t.slots) {
		was = t.slots[n].f
	}
	t.place(n, slot{f: f, cloexec: flags&unix.O_CLOEXEC != 0})
	t.mu.Unlock()
	if was != nil {
		was.put()
	}
	return uint64(n), 0
}

// Flags that F_SETFL changes.
const setFlags = unix.O_APPEND | unix.O_NONBLOCK

func (t *Table) sysFcntl(c *Call, fd, cmd, arg uint64) (uint64, unix.Errno) {
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	switch cmd {
	case unix.F_DUPFD, unix.F_DUPFD_CLOEXEC:
		if arg >= uint64(t.most) {
			return 0, unix.EINVAL
		}
		n, e := t.install(f, int(arg), cmd == unix.F_DUPFD_CLOEXEC, nil)
		return uint64(n), e
	case unix.F_GETFD, unix.F_SETFD:
		t.mu.Lock()
		defer t.mu.Unlock()
		n := int(int32(fd))
		if n >= len(t.slots) || t.slots[n].f != f {
			return 0, unix.EBADF
		}
		if cmd == unix.F_SETFD {
			t.slots[n].cloexec = arg&unix.FD_CLOEXEC != 0
			return 0, 0
		}
		if t.slots[n].cloexec {
			return unix.FD_CLOEXEC, 0
		}
		return 0, 0
	case unix.F_GETFL:
		return uint64(f.flags.Load() | unix.O_LARGEFILE), 0
	case unix.F_SETFL:
		for {
			was := f.flags.Load()
			if f.flags.CompareAndSwap(was, was&^setFlags|uint32(arg)&setFlags) {
				return 0, 0
			}
		}
	case unix.F_SETLK, unix.F_SETLKW, unix.F_OFD_SETLK, unix.F_OFD_SETLKW:
		return 0, 0 // the guest is one process: it never meets a foreign lock
	case unix.F_GETLK, unix.F_OFD_GETLK:
		return 0, c.copyOut(arg, []byte{unix.F_UNLCK, 0}) // l_type of struct flock
	case unix.F_GETPIPE_SZ:
		if _, ok := f.obj.(*pipeEnd); ok {
			return 65536, 0
		}
		return 0, unix.EBADF
	}
	return 0, unix.EINVAL
}
