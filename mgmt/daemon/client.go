package daemon

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/ring"
)

// client is one client's end of a disk, as graild keeps it to attach it to one driver instance after the other.
type client struct {
	att   hv.Attachment // descriptor fields index files
	files []*os.File    // owned
	kinds []fileKind    // of files

	net bool // a network card's queue

	// refuse ends a client that broke the rules, where that is possible; nil: it is not.
	refuse func(why error)

	// gets returns what the client gets of its driver, as text; nil: this driver has no shares.
	gets func() string

	attaching sync.Mutex // held during an attach

	mu sync.Mutex
	on *driverInstance // that serves it, or nil
	// share is what the client gets, as text; empty: not found out yet. told is what on was told of it; empty: an adopted instance, which may have been
	// told something.
	share, told string
	err         string // why the present instance refused it
	dead        bool   // the present instance found its ring broken
	gone        bool   // it is not to be attached any more
	lied        bool   // the last instance broke the rules of a ring

	// wild are, by queue, the wild heads that stood in the used rings before on was attached: nothing that it did.
	wild []map[int]uint32

	blame   time.Time // with every blame of its driver for what the client may have made up, later by blamePause; see believed
	doubted time.Time // when a driver was last replaced because it said that the client broke the rules
	renewed time.Time // when its rings were last started anew while it was served
}

// newClient takes over files. Attachments come from other processes: the indices are checked.
func newClient(att hv.Attachment, files []*os.File) (*client, error) {
	var bad error
	att.Descriptors(func(fd *int) {
		if *fd >= len(files) {
			bad = fmt.Errorf("attachment %d names descriptor %d of %d", att.ID, *fd, len(files))
		}
	})
	if bad != nil {
		return nil, bad
	}
	c := &client{att: att, files: files}
	for _, f := range files {
		c.kinds = append(c.kinds, kindOf(f))
	}
	return c, nil
}

// fileKind says what graild may do with a descriptor that came from somewhere else without ever blocking on it.
type fileKind int

const (
	otherFile  fileKind = iota // nothing
	memoryFile                 // read
	bellFile                   // write, when it polls writable
)

func kindOf(f *os.File) fileKind {
	fd := rawFD(f)
	if target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && target == "anon_inode:[eventfd]" {
		return bellFile
	}
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) == nil && (st.Type == unix.TMPFS_MAGIC || st.Type == unix.HUGETLBFS_MAGIC) {
		return memoryFile
	}
	return otherFile
}

func (c *client) close() {
	for _, f := range c.files {
		f.Close()
	}
}

// inSpec returns the attachment as it stands in the Spec of a grailvm started with l.
func (c *client) inSpec(l *hv.Launch) hv.Attachment {
	att := cloneAttachment(c.att)
	att.Descriptors(func(fd *int) { *fd = l.Add(c.files[*fd]) })
	return att
}

func cloneAttachment(a hv.Attachment) hv.Attachment {
	a.Regions = append([]hv.AttachMem(nil), a.Regions...)
	a.Queues = append([]hv.AttachRing(nil), a.Queues...)
	return a
}

// offer returns the attachment as it is sent to a driver, and the descriptors that go with it: not those that are for the client alone.
func (c *client) offer() (att hv.Attachment, fds []int) {
	att = cloneAttachment(c.att)
	if c.native() {
		// A log that was never used says nothing about where its rings begin: after a change of epoch that is not 0.
		for i := range att.Queues {
			att.Queues[i].LastAvail, _ = c.read16(att.Queues[i].Used + 2)
		}
	}
	att.Descriptors(func(fd *int) {
		fds = append(fds, rawFD(c.files[*fd]))
		*fd = len(fds) - 1
	})
	return att, fds
}

// rawFDs returns descriptor numbers without changing whether the files block, which File.Fd may.
func rawFDs(files []*os.File) []int {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = rawFD(f)
	}
	return fds
}

// rawFD returns -1 for a closed file.
func rawFD(f *os.File) int {
	n := -1
	if c, err := f.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}

// leaving reports whether the client is being detached for good.
func (c *client) leaving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// what names the kind of the client's device, for messages.
func (c *client) what() string {
	if c.net {
		return "port"
	}
	return "disk"
}

// pending reports whether a ring of the client has requests that are not completed. Both indices are written by others
// and only compared. The memory is read and not mapped, so that a client which shrinks it harms nobody.
func (c *client) pending() bool {
	for i := range c.att.Queues {
		if avail, used, ok := c.indices(i); ok && avail != used {
			return true
		}
	}
	return false
}

// indices returns the two indices of queue i, if there can be work for the driver in it and they can be read.
func (c *client) indices(i int) (avail, used uint16, ok bool) {
	q := &c.att.Queues[i]
	if c.net && q.Index%2 == 0 {
		return 0, 0, false // free buffers that wait for frames (virtio 1.2 §5.1.2: receive queues have the even numbers)
	}
	// The index follows 16 bits of flags in both rings (virtio 1.2 §2.7.6, §2.7.8).
	avail, ok1 := c.read16(q.Avail + 2)
	used, ok2 := c.read16(q.Used + 2)
	return avail, used, ok1 && ok2
}

// read16 reads two bytes at an address of the client.
func (c *client) read16(addr uint64) (uint16, bool) {
	var b [2]byte
	ok := c.read(addr, b[:])
	return binary.LittleEndian.Uint16(b[:]), ok
}

// rings describes the client's queues, as far as they can be read. All of it is written by others.
func (c *client) rings() (list []api.Ring) {
	for i := range c.att.Queues {
		q := &c.att.Queues[i]
		r := api.Ring{Client: c.att.Client, Disk: c.att.Disk, Queue: int(q.Index), Size: int(q.Size), Inflight: -1}
		var ok1, ok2 bool
		r.Avail, ok1 = c.read16(q.Avail + 2)
		r.Used, ok2 = c.read16(q.Used + 2)
		if !ok1 || !ok2 {
			continue
		}
		if log := c.log(i); log != nil {
			r.Inflight = ring.CountInflight(log)
			r.Requests = c.requests(i, log)
		}
		list = append(list, r)
	}
	return list
}

// kick rings the driver's doorbells of the client.
func (c *client) kick() {
	for i := range c.att.Queues {
		c.ring(c.att.Queues[i].Kick)
	}
}

// call rings the client's own doorbells: what its former driver completed it may not have been told.
func (c *client) call() {
	for i := range c.att.Queues {
		c.ring(c.att.Queues[i].Call)
	}
}

// ring adds one to an eventfd. A full one is rung already.
func (c *client) ring(fd int) {
	if fd < 0 || c.kinds[fd] != bellFile {
		return
	}
	poll := []unix.PollFd{{Fd: int32(rawFD(c.files[fd])), Events: unix.POLLOUT}}
	if n, err := unix.Poll(poll, 0); err != nil || n != 1 {
		return
	}
	_, _ = unix.Write(int(poll[0].Fd), binary.NativeEndian.AppendUint64(nil, 1))
}

// binding describes the client.
func (c *client) binding(present *driverInstance) api.Binding {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := api.Binding{ID: c.att.ID, Name: c.att.Client, Disk: c.att.Disk, ReadOnly: c.att.ReadOnly,
		Queues: len(c.att.Queues), Attached: c.on != nil && c.on == present, Error: c.err}
	if c.dead {
		b.Attached, b.Error = false, "it broke the rules of its ring and is no longer served"
	}
	return b
}
