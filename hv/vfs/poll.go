package vfs

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
)

// Poll events that x/sys does not name (asm-generic/poll.h).
const (
	pollRdNorm = 0x40
	pollWrNorm = 0x100
)

// alwaysReady are the events that regular files and their like show at once.
const alwaysReady = unix.POLLIN | unix.POLLOUT | pollRdNorm | pollWrNorm

// gather starts a poll of the descriptors that add names.
func (c *Call) gather() {
	c.polls, c.pollIdx, c.held = c.polls[:0], c.pollIdx[:0], c.held[:0]
}

// ungather gives back the files that the poll held.
func (c *Call) ungather() {
	for i, f := range c.held {
		f.put()
		c.held[i] = nil
	}
	c.held = c.held[:0]
}

// watch adds guest descriptor fd as entry i. What is known at once is returned; else 0, and the host descriptor
// is among c.polls.
func (t *Table) watch(c *Call, i int, fd int32, events int16) int16 {
	f, e := t.get(uint64(fd))
	if e != 0 {
		return unix.POLLNVAL
	}
	if f.isPath() {
		f.put()
		return unix.POLLNVAL
	}
	h := f.obj.pollFD()
	if h < 0 {
		f.put()
		return events & alwaysReady
	}
	c.held = append(c.held, f)
	c.polls = append(c.polls, unix.PollFd{Fd: int32(h), Events: events})
	c.pollIdx = append(c.pollIdx, int32(i))
	return 0
}

// await waits for one of c.polls; the revents are then in place.
func (c *Call) await(timeout time.Duration) (int, unix.Errno) {
	if timeout == 0 {
		if len(c.polls) == 0 {
			return 0, 0
		}
		for {
			n, err := unix.Poll(c.polls, 0)
			if err != unix.EINTR {
				return n, errnoOf(err)
			}
		}
	}
	n, err := c.Wait.Poll(c.polls, timeout)
	return n, errnoOf(err)
}

// sysPoll serves poll and ppoll; a negative timeout means for ever.
func (t *Table) sysPoll(c *Call, addr, n uint64, timeout time.Duration) (uint64, unix.Errno) {
	return t.poll(c, addr, n, timeout, false)
}

// poll waits for what the array of n struct pollfd at addr asks for, and writes the answers to it. With bells, it first rings the
// eventfds that it is asked to, and reads those that it reports readable (abi.SysWait).
func (t *Table) poll(c *Call, addr, n uint64, timeout time.Duration, bells bool) (uint64, unix.Errno) {
	if n > MaxFDs {
		return 0, unix.EINVAL
	}
	if cap(c.pollWire) < int(n)*8 {
		c.pollWire = make([]byte, n*8)
	}
	wire := c.pollWire[:n*8]
	if e := c.copyIn(addr, wire); e != 0 {
		return 0, e
	}
	c.gather()
	defer c.ungather()
	le := binary.LittleEndian
	ready := 0
	for i := range int(n) {
		w := wire[i*8:]
		fd, events := int32(le.Uint32(w)), int16(le.Uint16(w[4:]))
		var now int16
		switch {
		case fd < 0:
		case bells && events&abi.PollRing != 0:
			now = t.ring(c, fd)
		default:
			now = t.watch(c, i, fd, events)
		}
		le.PutUint16(w[6:], uint16(now))
		if now != 0 {
			ready++
		}
	}
	if ready > 0 {
		timeout = 0
	}
	if _, e := c.await(timeout); e != 0 {
		return 0, e
	}
	if f := t.Faults.Bells.Load(); f != nil && bells {
		if e := c.awaitFaulty(f, timeout); e != 0 {
			return 0, e
		}
	}
	for k := range c.polls {
		if r := c.polls[k].Revents; r != 0 {
			le.PutUint16(wire[int(c.pollIdx[k])*8+6:], uint16(r))
			ready++
			if v, ok := c.held[k].obj.(*event); bells && ok && r&unix.POLLIN != 0 && v.rights&abi.RightRead != 0 && c.polls[k].Events != 0 {
				v.consume(c.small[:8]) // empty again: another reader was faster
			}
		}
	}
	for i := range int(n) { // only revents is the host's to write
		if e := c.copyOut(addr+uint64(i)*8+6, wire[i*8+6:i*8+8]); e != 0 {
			return 0, e
		}
	}
	return uint64(ready), 0
}

// ring rings the doorbell that is guest descriptor fd.
func (t *Table) ring(c *Call, fd int32) (revents int16) {
	f, e := t.get(uint64(fd))
	if e != 0 {
		return unix.POLLNVAL
	}
	defer f.put()
	v, ok := f.obj.(*event)
	if !ok || v.rights&abi.RightWrite == 0 {
		return unix.POLLNVAL
	}
	v.ring(c)
	return 0
}

func (t *Table) sysPpoll(c *Call, addr, n, ts, mask, size uint64) (uint64, unix.Errno) {
	timeout := time.Duration(-1)
	if ts != 0 {
		var e unix.Errno
		if timeout, e = c.timespec(ts); e != 0 {
			return 0, e
		}
	}
	return c.masked(mask, size, func() (uint64, unix.Errno) { return t.sysPoll(c, addr, n, timeout) })
}

// ms turns a timeout argument in milliseconds into a duration; negative means for ever.
func ms(v uint64) time.Duration {
	if int32(v) < 0 {
		return -1
	}
	return time.Duration(int32(v)) * time.Millisecond
}

// selectSets are the three descriptor sets of select, and the poll events that each stands for.
var selectSets = [3]struct{ ask, show int16 }{
	{unix.POLLIN | pollRdNorm, unix.POLLIN | pollRdNorm | unix.POLLHUP | unix.POLLERR},
	{unix.POLLOUT | pollWrNorm, unix.POLLOUT | pollWrNorm | unix.POLLERR},
	{unix.POLLPRI, unix.POLLPRI},
}

func (t *Table) sysSelect(c *Call, n uint64, sets [3]uint64, timeout time.Duration) (uint64, unix.Errno) {
	nfds := int(int32(n))
	if nfds < 0 {
		return 0, unix.EINVAL
	}
	nfds = min(nfds, MaxFDs)
	size := (nfds + 63) / 64 * 8
	var in, out [3][MaxFDs / 8]byte
	for k, addr := range sets {
		if addr == 0 {
			continue
		}
		if e := c.copyIn(addr, in[k][:size]); e != 0 {
			return 0, e
		}
	}
	c.gather()
	defer c.ungather()
	ready := 0
	mark := func(fd int, r int16) {
		for k := range selectSets {
			if in[k][fd/8]>>(fd%8)&1 != 0 && r&selectSets[k].show != 0 {
				out[k][fd/8] |= 1 << (fd % 8)
				ready++
			}
		}
	}
	for fd := range nfds {
		var events int16
		for k := range selectSets {
			if in[k][fd/8]>>(fd%8)&1 != 0 {
				events |= selectSets[k].ask
			}
		}
		if events == 0 {
			continue
		}
		now := t.watch(c, fd, int32(fd), events)
		if now == unix.POLLNVAL {
			return 0, unix.EBADF
		}
		mark(fd, now)
	}
	if ready > 0 {
		timeout = 0
	}
	if _, e := c.await(timeout); e != 0 {
		return 0, e
	}
	for k := range c.polls {
		mark(int(c.pollIdx[k]), c.polls[k].Revents)
	}
	for k, addr := range sets {
		if addr == 0 {
			continue
		}
		if e := c.copyOut(addr, out[k][:size]); e != 0 {
			return 0, e
		}
	}
	return uint64(ready), 0
}

// sysSelectTimeval serves select, whose timeout is a struct timeval.
func (t *Table) sysSelectTimeval(c *Call, a [6]uint64) (uint64, unix.Errno) {
	timeout := time.Duration(-1)
	if a[4] != 0 {
		if e := c.copyIn(a[4], c.small[:16]); e != 0 {
			return 0, e
		}
		sec, us := int64(binary.LittleEndian.Uint64(c.small[:8])), int64(binary.LittleEndian.Uint64(c.small[8:16]))
		if sec < 0 || us < 0 || us > 1<<53 {
			return 0, unix.EINVAL
		}
		var e unix.Errno
		if timeout, e = duration(min(sec, 1<<40)+us/1e6, us%1e6, int64(time.Microsecond)); e != 0 {
			return 0, e
		}
	}
	return t.sysSelect(c, a[0], [3]uint64{a[1], a[2], a[3]}, timeout)
}

func (t *Table) sysPselect6(c *Call, a [6]uint64) (uint64, unix.Errno) {
	timeout := time.Duration(-1)
	if a[4] != 0 {
		var e unix.Errno
		if timeout, e = c.timespec(a[4]); e != 0 {
			return 0, e
		}
	}
	var mask, size uint64
	if a[5] != 0 {
		if e := c.copyIn(a[5], c.small[:16]); e != 0 {
			return 0, e
		}
		mask, size = binary.LittleEndian.Uint64(c.small[:8]), binary.LittleEndian.Uint64(c.small[8:16])
	}
	return c.masked(mask, size, func() (uint64, unix.Errno) {
		return t.sysSelect(c, a[0], [3]uint64{a[1], a[2], a[3]}, timeout)
	})
}
