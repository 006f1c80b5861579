package vfs

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// addSpecial makes /dev, /proc and /sys.
func (t *tree) addSpecial(cfg *Config, now int64) {
	dir := func(parent *node, name string) *node {
		n := t.newNode(kindDir, 0o555)
		n.born(now)
		parent.add(name, n)
		return n
	}
	link := func(parent *node, name, target string) {
		n := t.newNode(kindSymlink, 0o777)
		n.target = target
		n.born(now)
		parent.add(name, n)
	}
	dev := dir(t.root, "dev")
	for _, d := range charDevices {
		n := t.newNode(kindDevice, 0o666)
		n.born(now)
		n.device = func() object { return d }
		dev.add(d.label, n)
	}
	link(dev, "fd", "/proc/self/fd")
	link(dev, "stdin", "/proc/self/fd/0")
	link(dev, "stdout", "/proc/self/fd/1")
	link(dev, "stderr", "/proc/self/fd/2")
	self := dir(dir(t.root, "proc"), "self")
	t.fds = t.newNode(kindFDs, 0o500)
	t.fds.born(now)
	self.add("fd", t.fds)
	dir(t.root, "sys")

	var st unix.Stat_t
	if cfg.ProgramName == "" {
		return
	}
	if cfg.Program < 0 || unix.Fstat(cfg.Program, &st) != nil {
		link(self, "exe", t.program)
		return
	}
	exe := t.newNode(kindMagic, 0o777)
	exe.target = t.program
	exe.real = t.newNode(kindHost, 0o755)
	exe.real.host = cfg.Program
	exe.real.bytes.Store(st.Size)
	exe.real.born(now)
	t.progNode = exe.real
	self.add("exe", exe)
}

// charDevice is /dev/null and its like.
type charDevice struct {
	label string
	minor uint64
}

// maxDeviceRead bounds one read of an endless device, so that the thread can be interrupted in between.
const maxDeviceRead = 32 << 20

var charDevices = []*charDevice{{"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}}

func (d *charDevice) read(c *Call, _ *file, u *uio, _ int64) (uint64, unix.Errno) {
	var done uint64
	for u.left > 0 && done < maxDeviceRead {
		b := zeroBlock[:]
		switch d.label {
		case "null":
			return 0, 0
		case "random", "urandom":
			b = c.bounceBuf()[:min(u.left, bounceSize)]
			n, err := unix.Getrandom(b, 0)
			if err != nil {
				return done, errnoOf(err)
			}
			b = b[:n]
		}
		n, e := u.put(b)
		done += n
		if e != 0 {
			if done > 0 {
				return done, 0
			}
			return 0, e
		}
	}
	return done, 0
}

func (d *charDevice) write(_ *Call, _ *file, u *uio, _ int64) (uint64, unix.Errno) {
	if d.label == "full" && u.left > 0 {
		return 0, unix.ENOSPC
	}
	return u.left, 0
}

func (d *charDevice) seek(int64, int) (uint64, unix.Errno) { return 0, 0 }

// size makes positions legal; a character device ignores them.
func (d *charDevice) size() int64 { return 0 }

func (d *charDevice) stat(st *stat) {
	st.mode = unix.S_IFCHR | 0o666
	st.rdev = unix.Mkdev(1, uint32(d.minor))
}
func (d *charDevice) pollFD() int  { return -1 }
func (d *charDevice) name() string { return "/dev/" + d.label }
func (d *charDevice) release()     {}

// fdNode returns the entry of /proc/self/fd for a number, open or not; whoever uses it looks.
func (t *tree) fdNode(name string) *node {
	fd, err := strconv.ParseUint(name, 10, 31)
	if err != nil || fd >= MaxFDs || strconv.FormatUint(fd, 10) != name {
		return nil
	}
	n := &node{kind: kindMagic, fd: int(fd), ino: 1<<40 + fd, links: 1}
	n.mode.Store(0o700)
	return n
}
