package vhostuser

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// setVring processes the requests that change one queue.
func (s *session) setVring(m *message) error {
	switch m.req {
	case SetVringKick, SetVringCall, SetVringErr:
		return s.setVringFD(m)
	case SetVringAddr:
		a, err := m.addr()
		if err != nil {
			return err
		}
		return s.changeVring(m, a.index, func(v *vring) error {
			v.addr, v.hasAddr = a, true
			return nil
		})
	}
	st, err := m.state()
	if err != nil {
		return err
	}
	return s.changeVring(m, st.index, func(v *vring) error {
		switch m.req {
		case SetVringNum:
			if st.num == 0 || st.num > MaxQueueSize || st.num&(st.num-1) != 0 {
				return fmt.Errorf("%w: queue size %d is not a power of two in 1..%d", ErrMessage, st.num, MaxQueueSize)
			}
			v.num = uint16(st.num)
		case SetVringBase:
			if st.num > 0xffff {
				return fmt.Errorf("%w: base %d", ErrMessage, st.num)
			}
			v.base = uint16(st.num)
		case SetVringEnable:
			if st.num > 1 {
				return fmt.Errorf("%w: enable %d", ErrMessage, st.num)
			}
			v.asked, v.enabled = true, st.num == 1
		}
		return nil
	})
}

// changeVring stops a queue, changes it, and lets it run again if it is still ready.
func (s *session) changeVring(m *message, index uint32, change func(*vring) error) error {
	v, i, err := s.vring(m, index)
	if err != nil {
		return err
	}
	if m.req == SetVringEnable && v.running && m.payload[4] == 1 {
		return nil // already so
	}
	if err := s.stop(i); err != nil {
		return err
	}
	if err := change(v); err != nil {
		return err
	}
	return s.settle(i)
}

// setVringFD takes over a queue's doorbell.
func (s *session) setVringFD(m *message) error {
	f, err := m.vringFD()
	if err != nil {
		return err
	}
	v, i, err := s.vring(m, f.index)
	if err != nil {
		return err
	}
	fd := -1
	if f.noFD {
		if len(m.fds) != 0 {
			return fmt.Errorf("%w: %v says no descriptor, %d came", ErrMessage, m.req, len(m.fds))
		}
	} else {
		if err := oneFD(m); err != nil {
			return err
		}
		if err := checkBell(m.fds[0]); err != nil {
			return err
		}
		fd = take(m)
	}
	switch m.req {
	case SetVringCall:
		if v.running {
			err = rejected(s.h.SetCall(i, fd))
		}
		replaceFD(&v.call, fd)
		return err
	case SetVringErr:
		err = s.stop(i)
		replaceFD(&v.errs, fd)
	default:
		err = s.stop(i)
		replaceFD(&v.kick, fd)
		v.started = true
	}
	if err != nil {
		return err
	}
	return s.settle(i)
}

// getVringBase stops a queue and tells where it stands. Its doorbells are dropped: a restart brings new ones.
func (s *session) getVringBase(m *message) (*message, error) {
	st, err := m.state()
	if err != nil {
		return nil, err
	}
	v, i, err := s.vring(m, st.index)
	if err != nil {
		return nil, err
	}
	v.started = false
	if err := s.stop(i); err != nil {
		return nil, err
	}
	replaceFD(&v.kick, -1)
	replaceFD(&v.call, -1)
	return &message{payload: vringState{st.index, uint32(v.base)}.encode()}, nil
}

// checkBell checks that fd can serve as a doorbell, and makes it non-blocking: an eventfd or another file
// without a name, or a pipe, which the protocol allows too. Anything else may be readable for ever or block.
// Errors: ErrMessage.
func checkBell(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%w: doorbell: %v", ErrMessage, err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != 0 && kind != unix.S_IFIFO {
		return fmt.Errorf("%w: descriptor of mode %#o is no doorbell", ErrMessage, st.Mode)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("%w: doorbell: %v", ErrMessage, err)
	}
	return nil
}
