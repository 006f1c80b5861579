package vhostuser

import (
	"fmt"
	"slices"

	"github.com/grailos/grail/ring"
	"golang.org/x/sys/unix"
)

// setMemTable replaces the whole memory.
func (s *session) setMemTable(m *message) error {
	rs, err := m.regions()
	if err != nil {
		return err
	}
	if len(rs) != len(m.fds) {
		return fmt.Errorf("%w: %d regions with %d descriptors", ErrMessage, len(rs), len(m.fds))
	}
	var t memTable
	for i, r := range rs {
		r.FD = m.fds[i]
		if r.Sealed, err = checkBacking(r.FD, r.Offset, r.Size); err != nil {
			return err
		}
		if t, err = t.with(r); err != nil {
			return err
		}
	}
	m.fds = nil
	return s.setMem(t)
}

// addMemReg adds one region.
func (s *session) addMemReg(m *message) error {
	if s.proto&ProtocolMemSlots == 0 {
		return fmt.Errorf("%w: %v was not negotiated", ErrMessage, m.req)
	}
	r, err := m.region()
	if err != nil {
		return err
	}
	if err := oneFD(m); err != nil {
		return err
	}
	if len(s.mem) >= MaxMemSlots {
		return rejected(fmt.Errorf("vhostuser: more than %d regions", MaxMemSlots))
	}
	r.FD = m.fds[0]
	if s.mem.has(r) {
		return nil // QEMU tells of each region once for each pair of a network card's queues
	}
	if r.Sealed, err = checkBacking(r.FD, r.Offset, r.Size); err != nil {
		return err
	}
	t, err := s.mem.with(r)
	if err != nil {
		return err
	}
	m.fds = nil
	return s.setMem(t)
}

// has reports whether r is in the table already: the same addresses of the same memory.
func (t memTable) has(r MemRegion) bool {
	return slices.ContainsFunc(t, func(o MemRegion) bool {
		return o.GPA == r.GPA && o.User == r.User && o.Size == r.Size && o.Offset == r.Offset && sameFile(o.FD, r.FD)
	})
}

// sameFile reports whether two descriptors are of one file.
func sameFile(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// remMemReg removes the region with the given addresses and size. A descriptor that comes along is ignored.
func (s *session) remMemReg(m *message) error {
	if s.proto&ProtocolMemSlots == 0 {
		return fmt.Errorf("%w: %v was not negotiated", ErrMessage, m.req)
	}
	r, err := m.region()
	if err != nil {
		return err
	}
	for i, o := range s.mem {
		if o.GPA == r.GPA && o.User == r.User && o.Size == r.Size {
			return s.setMem(append(s.mem[:i:i], s.mem[i+1:]...))
		}
	}
	return rejected(fmt.Errorf("vhostuser: no region of %#x bytes at %#x/%#x", r.Size, r.GPA, r.User))
}

// setMem installs t, whose descriptors it takes over, and closes those that are no longer used.
func (s *session) setMem(t memTable) error {
	gone, kept := t, s.mem // as long as t is not installed
	err := s.paused(func() error {
		gone, kept = s.mem, t
		s.mem = t
		return rejected(s.h.SetMemory(t))
	})
	for _, g := range gone {
		if !slices.ContainsFunc(kept, func(k MemRegion) bool { return k.FD == g.FD }) {
			unix.Close(g.FD)
		}
	}
	return err
}

// getInflight makes the memory of an in-flight log and hands it to the front end, which is to give it back by
// SET_INFLIGHT_FD now and after every reconnection.
func (s *session) getInflight(m *message) (*message, error) {
	a, err := m.inflight()
	if err != nil {
		return nil, err
	}
	if s.proto&ProtocolInflight == 0 {
		return nil, fmt.Errorf("%w: %v was not negotiated", ErrMessage, m.req)
	}
	if err := s.checkInflight(&a); err != nil {
		return nil, err
	}
	a.Offset, a.Size = 0, uint64(a.Queues)*ring.InflightBytes(a.QueueSize)
	mem, err := ring.NewShared("vhost-user-inflight", a.Size)
	if err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(uintptr(mem.FD()), unix.F_DUPFD_CLOEXEC, 0)
	mem.Close()
	if err != nil {
		return nil, fmt.Errorf("vhostuser: duplicate in-flight log: %w", err)
	}
	replaceFD(&s.made, fd) // open until it has been sent, and the next one is asked for
	return &message{payload: a.encode(), fds: []int{fd}}, nil
}

func (s *session) checkInflight(a *InflightArea) error {
	size := a.QueueSize
	if a.Queues == 0 || int(a.Queues) > len(s.vrings) || size == 0 || size > MaxQueueSize || size&(size-1) != 0 {
		return fmt.Errorf("%w: in-flight log for %d queues of %d", ErrMessage, a.Queues, size)
	}
	return nil
}

// setInflight takes over the memory of the in-flight log.
func (s *session) setInflight(m *message) error {
	a, err := m.inflight()
	if err != nil {
		return err
	}
	if s.proto&ProtocolInflight == 0 {
		return fmt.Errorf("%w: %v was not negotiated", ErrMessage, m.req)
	}
	if err := s.checkInflight(&a); err != nil {
		return err
	}
	if need := uint64(a.Queues) * ring.InflightBytes(a.QueueSize); a.Size < need {
		return fmt.Errorf("%w: in-flight log of %d bytes, want %d", ErrMessage, a.Size, need)
	}
	if err := oneFD(m); err != nil {
		return err
	}
	if a.Sealed, err = checkBacking(m.fds[0], a.Offset, a.Size); err != nil {
		return err
	}
	a.FD = take(m)
	gone := &a // as long as a is not installed
	err = s.paused(func() error {
		gone, s.log = s.log, &a
		return rejected(s.h.SetInflight(a))
	})
	if gone != nil {
		unix.Close(gone.FD)
	}
	return err
}
