package vfs

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/inject"
)

// What becomes of device operations and doorbells while a fault is armed. Nothing here is reached otherwise.

// strikes reports whether f strikes an operation.
func strikes(f *inject.Armed, op string) bool {
	switch {
	case f.Op != "" && f.Op != op:
		return false
	case f.How == inject.Short && op == inject.OpFlush: // there is nothing to be cut
		return false
	case f.Errno == int(unix.ENOSPC) && op != inject.OpWrite: // only what takes room can lack it
		return false
	}
	return f.Strike()
}

// faulty lets f strike an operation of n bytes. It returns how many bytes may be moved, or why none are. A delay has passed then. c may be nil.
func faulty(f *inject.Armed, c *Call, op string, n uint64) (uint64, unix.Errno) {
	if !strikes(f, op) {
		return n, 0
	}
	switch f.How {
	case inject.Error:
		return 0, unix.Errno(f.Order.Errno)
	case inject.Short:
		return cut(f, n), 0
	}
	idle(c, f.Wait())
	return n, 0
}

// idle passes time on the thread of a call, which ends early where the guest does.
func idle(c *Call, d time.Duration) {
	end := time.Now().Add(d)
	for left := d; left > 0; left = time.Until(end) {
		if c == nil {
			time.Sleep(left)
			continue
		}
		if _, err := c.Wait.Poll(nil, left); err != nil {
			return
		}
	}
}

// cut returns a part of n bytes, whole sectors where there are several, but at least one byte of what was asked for.
func cut(f *inject.Armed, n uint64) uint64 {
	const sector = 512
	switch {
	case n > sector:
		return (1 + uint64(f.Pick(int((n-1)/sector)))) * sector
	case n > 1:
		return 1 + uint64(f.Pick(int(n-1)))
	}
	return n
}

// performFaulty performs one request of SysDevIO.
func performFaulty(f *inject.Armed, c *Call, d performer, w []byte) (uint64, unix.Errno) {
	op := inject.OpWrite
	switch abi.DevOp(binary.LittleEndian.Uint16(w[4:])) {
	case abi.DevRead:
		op = inject.OpRead
	case abi.DevFlush:
		op = inject.OpFlush
	}
	if f.How == inject.Short {
		_, isDevice := d.(*device) // a packet is never cut
		if !isDevice || !strikes(f, op) {
			return d.perform(c, w)
		}
		c.short = f
		defer func() { c.short = nil }()
		return d.perform(c, w)
	}
	if _, e := faulty(f, c, op, 0); e != 0 {
		if dev, ok := d.(*device); ok && e != unix.EINTR && e != unix.EAGAIN {
			dev.faults.note(e) // as if the host's file had failed
		}
		return 0, e
	}
	return d.perform(c, w)
}

// struck lets the armed fault, if there is one, strike a ring of the doorbell, and reports whether that was all that becomes of it.
func (v *event) struck(c *Call) bool {
	f := v.faults.Bells.Load()
	if f == nil || !v.strikes(f) {
		return false
	}
	if f.How == inject.Double {
		v.add(c)
		return false
	}
	return true
}

// strikes reports whether f strikes this doorbell now.
func (v *event) strikes(f *inject.Armed) bool {
	if f.Op == inject.OpKick && v.call || f.Op == inject.OpCall && !v.call {
		return false
	}
	return f.Strike()
}

// awaitFaulty lets f strike the doorbells among c.polls that were rung. A ring that is lost leaves the call waiting.
func (c *Call) awaitFaulty(f *inject.Armed, timeout time.Duration) unix.Errno {
	for {
		lost, ready := false, false
		for k := range c.polls {
			v, ok := c.held[k].obj.(*event)
			bell := ok && v.shared && c.polls[k].Revents&unix.POLLIN != 0
			switch {
			case !bell || !v.strikes(f):
				ready = ready || c.polls[k].Revents != 0
			case f.How == inject.Double:
				ready = true
				c.polls[k].Events = 0 // the caller does not drain it, and the next call finds it once more
			default:
				v.consume(c.small[:8])
				c.polls[k].Revents &^= unix.POLLIN
				lost, ready = true, ready || c.polls[k].Revents != 0
			}
		}
		if ready || !lost || timeout == 0 {
			return 0
		}
		if _, e := c.await(timeout); e != 0 {
			return e
		}
	}
}
