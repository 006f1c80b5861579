package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/blk"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/ring/virtioblk"
)

// backing is a host file or block device that belongs to one driver VM as long as it is open and locked.
type backing struct {
	id       string
	path     string
	readOnly bool
	file     *os.File
	dev, ino uint64 // identity: of a block device, its device number and 0
	size     uint64
	discard  bool
}

// openBacking opens and locks the file behind a disk: exclusively, or shared when it is only read.
func openBacking(c api.Disk) (_ *backing, err error) {
	flags := os.O_RDWR
	if c.ReadOnly {
		flags = os.O_RDONLY
	}
	st, err := os.Stat(c.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, api.Errorf(api.Invalid, "disk %s: %s does not exist; make it first, for instance with truncate -s 1G", c.ID, c.Path)
	case err != nil:
		return nil, api.Errorf(api.Invalid, "disk %s: %v", c.ID, err)
	case st.IsDir():
		return nil, api.Errorf(api.Invalid, "disk %s: %s is a directory; a disk is a regular file or a block device", c.ID, c.Path)
	}
	block := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if !block && !st.Mode().IsRegular() {
		return nil, api.Errorf(api.Invalid, "disk %s: %s is neither a regular file nor a block device", c.ID, c.Path)
	}
	if block && !c.ReadOnly {
		flags |= unix.O_EXCL // refused while it is mounted (open(2))
	}
	f, err := os.OpenFile(c.Path, flags, 0)
	switch {
	case errors.Is(err, os.ErrPermission) && !c.ReadOnly:
		return nil, api.Errorf(api.Invalid, "disk %s: no permission to write %s; add :ro to only read it", c.ID, c.Path)
	case errors.Is(err, unix.EBUSY):
		return nil, api.Errorf(api.Busy, "disk %s: %s is mounted or otherwise in use by the host; unmount it, or add :ro", c.ID, c.Path)
	case err != nil:
		return nil, api.Errorf(api.Invalid, "disk %s: %v", c.ID, err)
	}
	b := &backing{id: c.ID, path: c.Path, readOnly: c.ReadOnly, file: f}
	if err := b.inspect(); err != nil {
		f.Close()
		return nil, err
	}
	return b, nil
}

// inspect fills in what the open file says of itself.
func (b *backing) inspect() error {
	var st unix.Stat_t
	if err := unix.Fstat(rawFD(b.file), &st); err != nil {
		return fmt.Errorf("disk %s: %w", b.id, err)
	}
	b.dev, b.ino = st.Dev, st.Ino
	block := st.Mode&unix.S_IFMT == unix.S_IFBLK
	if block {
		b.dev, b.ino = st.Rdev, 0
	}
	size, err := b.file.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("disk %s: size of %s: %w", b.id, b.path, err)
	}
	b.size = uint64(size)
	switch {
	case size == 0:
		return api.Errorf(api.Invalid, "disk %s: %s is empty; a disk needs a size, for instance truncate -s 1G %s", b.id, b.path, b.path)
	case size%virtioblk.SectorSize != 0:
		return api.Errorf(api.Invalid, "disk %s: %s has %d bytes, which is no multiple of %d; round it up, for instance with truncate -s %%512 %s",
			b.id, b.path, size, virtioblk.SectorSize, b.path)
	}
	b.discard = !b.readOnly && canDiscard(b.file, &st, block)
	return nil
}

// lock takes the lock that keeps other driver VMs away, also those of another graild. It waits for at most patience.
func (b *backing) lock(patience time.Duration) error {
	how := unix.LOCK_EX
	if b.readOnly {
		how = unix.LOCK_SH
	}
	deadline := time.Now().Add(patience)
	err := unix.Flock(rawFD(b.file), how|unix.LOCK_NB)
	for errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline) {
		time.Sleep(lockPause)
		err = unix.Flock(rawFD(b.file), how|unix.LOCK_NB)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return api.Errorf(api.Busy, "disk %s: %s is locked by another program%s; a file belongs to one driver, except that several may read it with :ro",
			b.id, b.path, lockHolder(b.dev, b.ino))
	}
	if err != nil {
		return fmt.Errorf("disk %s: lock %s: %w", b.id, b.path, err)
	}
	return nil
}

// A driver's process that was just killed holds its locks until the kernel has closed its files.
const (
	lockPatience = time.Second
	lockPause    = 2 * time.Millisecond
)

// conflicts reports whether both are one file and at least one of them writes it.
func (b *backing) conflicts(o *backing) bool {
	return b.dev == o.dev && b.ino == o.ino && !(b.readOnly && o.readOnly)
}

// device describes the disk to clients.
func (b *backing) device() blk.Device {
	return blk.Device{Size: b.size, ReadOnly: b.readOnly, Queues: blk.MaxQueues, Discard: b.discard}
}

// canDiscard reports whether the file can give back space in its middle.
func canDiscard(f *os.File, st *unix.Stat_t, block bool) bool {
	if block {
		dir := fmt.Sprintf("/sys/dev/block/%d:%d/", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		for _, p := range []string{dir + "queue/discard_max_bytes", dir + "../queue/discard_max_bytes"} {
			if s, err := os.ReadFile(p); err == nil {
				return strings.TrimSpace(string(s)) != "0"
			}
		}
		return false
	}
	// A hole beyond the end changes nothing and is refused where holes are not supported (fallocate(2)).
	return unix.Fallocate(rawFD(f), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, st.Size, 4096) == nil
}

// lockHolder names the process that holds a lock on a file, from /proc/locks, as " (NAME, PID n)".
func lockHolder(dev, ino uint64) string {
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(dev), unix.Minor(dev), ino)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != want {
			continue
		}
		cmd, err := os.ReadFile("/proc/" + f[4] + "/comm")
		if err != nil {
			return " (PID " + f[4] + ")"
		}
		return fmt.Sprintf(" (%s, PID %s)", strings.TrimSpace(string(cmd)), f[4])
	}
	return ""
}
