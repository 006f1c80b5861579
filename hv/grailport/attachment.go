package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/vhostuser"
)

// attachment is one queue of a client, as it is offered to graild.
type attachment struct {
	hv.Attachment       // descriptor fields index fds
	fds           []int // owned
	disconnect    func(error)

	// Guarded by portal.mu.
	fetched bool // graild has seen it: it may be attached
	leaving bool
	gone    chan struct{} // closed once it is not attached and never will be
}

// close closes the attachment's descriptors.
func (a *attachment) close() {
	for _, fd := range a.fds {
		unix.Close(fd)
	}
	a.fds = nil
}

// dup adds a copy of fd to a's descriptors and returns its index.
func (a *attachment) dup(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	a.fds = append(a.fds, n)
	return len(a.fds) - 1, nil
}

// newAttachment builds the attachment of queue q. The regions and the log stay the caller's.
func newAttachment(base hv.Attachment, mem []vhostuser.MemRegion, log inflight, q vhostuser.QueueState, disconnect func(error)) (*attachment, error) {
	a := &attachment{Attachment: base, gone: make(chan struct{}), disconnect: disconnect}
	var failed error
	add := func(fd int) int {
		if fd < 0 {
			return -1
		}
		i, err := a.dup(fd)
		if err != nil && failed == nil {
			failed = err
		}
		return i
	}
	for _, r := range mem {
		a.Regions = append(a.Regions, hv.AttachMem{FD: add(r.FD), Base: r.GPA, Size: r.Size, Offset: r.Offset})
	}
	a.Queues = []hv.AttachRing{{
		Index: uint16(q.Index), Size: q.Ring.Size, LastAvail: q.LastAvail, Kick: add(q.Kick), Call: add(q.Call),
		Desc: q.Ring.Desc, Avail: q.Ring.Avail, Used: q.Ring.Used,
	}}
	a.Features = q.Ring.Features
	a.Log, a.LogSize = add(log.fd), log.size
	if failed != nil {
		a.close()
		return nil, failed
	}
	return a, nil
}

// add offers a to graild. Errors: there are too many.
func (p *portal) add(a *attachment) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.attachments) >= maxAttachments {
		return fmt.Errorf("more than %d queues are attached", maxAttachments)
	}
	if p.nextID-p.spec.FirstID >= hv.PortalIDs {
		return errors.New("all attachment numbers were used")
	}
	a.ID = p.nextID
	p.nextID++
	p.attachments = append(p.attachments, a)
	p.bump()
	return nil
}

// remove takes a back, and returns when the driver VM does not serve it. One that graild has never seen is
// gone at once.
func (p *portal) remove(a *attachment) {
	p.mu.Lock()
	if a.fetched {
		a.leaving = true
		p.bump()
	} else {
		p.drop(a)
	}
	p.mu.Unlock()
	<-a.gone
	a.close()
}

// drop forgets a. p.mu is held.
func (p *portal) drop(a *attachment) {
	if i := slices.Index(p.attachments, a); i >= 0 {
		p.attachments = slices.Delete(p.attachments, i, i+1)
		close(a.gone)
		p.bump()
	}
}

// usedIndex returns the index in the used ring of q. It reads through the descriptor: a mapping of memory that
// its owner truncates would be deadly.
func usedIndex(mem []vhostuser.MemRegion, q *ring.Queue) (uint16, error) {
	const idx = 2 // virtio 1.2 §2.7.8: flags, then idx
	for _, r := range mem {
		if off := q.Used + idx - r.GPA; q.Used+idx >= r.GPA && off <= r.Size-2 {
			var b [2]byte
			if n, err := unix.Pread(r.FD, b[:], int64(r.Offset+off)); n != 2 {
				return 0, fmt.Errorf("used ring at %#x cannot be read: %w", q.Used, errors.Join(err, unix.EIO))
			}
			return binary.LittleEndian.Uint16(b[:]), nil
		}
	}
	return 0, fmt.Errorf("used ring at %#x: %w", q.Used, ring.ErrRange)
}
