package vfs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Requests that x/sys does not name (asm-generic/ioctls.h).
const (
	fionClex = 0x5450
	fioClex  = 0x5451
	fionBio  = 0x5421
)

// guestPgrp is the process group that a terminal reports as its foreground one: the guest's own, which is
// process 1 of group 1.
const guestPgrp = 1

func (t *Table) sysIoctl(c *Call, fd, req, arg uint64) (uint64, unix.Errno) {
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	if f.isPath() {
		return 0, unix.EBADF
	}
	switch uint32(req) {
	case fionBio:
		if e := c.copyIn(arg, c.small[:4]); e != 0 {
			return 0, e
		}
		on := binary.LittleEndian.Uint32(c.small[:4]) != 0
		for {
			was := f.flags.Load()
			now := was &^ unix.O_NONBLOCK
			if on {
				now |= unix.O_NONBLOCK
			}
			if f.flags.CompareAndSwap(was, now) {
				return 0, 0
			}
		}
	case fioClex, fionClex:
		t.mu.Lock()
		defer t.mu.Unlock()
		if n := int(int32(fd)); n < len(t.slots) && t.slots[n].f == f {
			t.slots[n].cloexec = uint32(req) == fioClex
		}
		return 0, 0
	}
	if o, ok := f.obj.(ioctler); ok {
		return o.ioctl(c, f, req, arg)
	}
	return 0, unix.ENOTTY
}

// termiosSize is the size of the kernel's struct termios (asm-generic/termbits.h).
const termiosSize = 36

// terminalIoctl answers what a guest may ask of the terminal behind its console. It may not change it: the
// terminal is the user's.
func terminalIoctl(c *Call, fd int, req, arg uint64) (uint64, unix.Errno) {
	if fd < 0 {
		return 0, unix.ENOTTY
	}
	b := c.small[:termiosSize]
	switch uint32(req) {
	case unix.TCGETS:
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return 0, errnoOf(err)
		}
		le := binary.LittleEndian
		le.PutUint32(b, tio.Iflag)
		le.PutUint32(b[4:], tio.Oflag)
		le.PutUint32(b[8:], tio.Cflag)
		le.PutUint32(b[12:], tio.Lflag)
		b[16] = tio.Line
		copy(b[17:], tio.Cc[:])
		return 0, c.copyOut(arg, b)
	case unix.TIOCGWINSZ:
		ws, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err != nil {
			return 0, errnoOf(err)
		}
		le := binary.LittleEndian
		le.PutUint16(b, ws.Row)
		le.PutUint16(b[2:], ws.Col)
		le.PutUint16(b[4:], ws.Xpixel)
		le.PutUint16(b[6:], ws.Ypixel)
		return 0, c.copyOut(arg, b[:8])
	case unix.TIOCGPGRP:
		if !isTerminal(fd) {
			return 0, unix.ENOTTY
		}
		return 0, c.storeU32(arg, guestPgrp)
	case unix.TCSETS, unix.TCSETSW, unix.TCSETSF, unix.TIOCSPGRP, unix.TIOCSTI, unix.TIOCSCTTY:
		if !isTerminal(fd) {
			return 0, unix.ENOTTY
		}
		return 0, unix.EPERM
	}
	return streamIoctl(c, fd, req, arg)
}
