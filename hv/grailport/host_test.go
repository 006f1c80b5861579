package main

import (
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
	"github.com/grailos/grail/ring/vhostuser"
)

// host is a fake graild with a fake driver VM, which serves each attachment in this process.
type host struct {
	t          *testing.T
	ops        hv.Portal
	mu         sync.Mutex
	disk       *memDisk
	loop       *looper // not nil: the driver VM is a network's, and disk is not used
	refuse     string  // attaching fails with this
	served     map[uint64]*servedQueue
	attaches   int
	lastErrors []string
	quit       chan struct{}
	done       chan struct{}
}

type servedQueue struct {
	srv *ringtest.BlkServer // nil with a looper
	a   hv.Attachment
	fds []int
}

// newHost starts a host of a disk on a portal.
func newHost(t *testing.T, control string, disk *memDisk) *host {
	return startHost(t, control, disk, nil)
}

func startHost(t *testing.T, control string, disk *memDisk, loop *looper) *host {
	h := &host{
		t: t, ops: dial(t, control), disk: disk, loop: loop, served: map[uint64]*servedQueue{},
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	wait := dial(t, control)
	if err := wait.SetTimeout(50 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(h.done)
		defer func() { wait.Close() }()
		seq := uint64(0)
		for {
			s, err := wait.Wait(seq)
			select {
			case <-h.quit:
				return
			default:
			}
			if errors.Is(err, unix.EAGAIN) { // nothing new; look whether to quit
				wait.Close()
				wait = hv.Portal{}
				c, err := hv.Dial(control)
				if err != nil {
					h.t.Error(err)
					return
				}
				wait = hv.Portal{Conn: c}
				wait.SetTimeout(50 * time.Millisecond)
				continue
			}
			if err != nil {
				h.t.Error(err)
				return
			}
			seq = s.Seq
			h.reconcile(s)
		}
	}()
	return h
}

func (h *host) reconcile(s hv.PortalState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastErrors = s.Errors
	for _, pa := range s.Attachments {
		q := h.served[pa.ID]
		switch {
		case pa.Leaving:
			if q != nil {
				h.stop(q)
				delete(h.served, pa.ID)
			}
			if err := h.ops.Detached(pa.ID); err != nil {
				h.t.Error(err)
			}
		case q == nil:
			a, fds, err := h.ops.Fetch(pa.ID)
			if errors.Is(err, hv.ErrPortal) {
				continue
			}
			if err != nil {
				h.t.Error(err)
				return
			}
			h.attaches++
			var failure error
			if h.refuse != "" {
				failure = errors.New(h.refuse)
				closeFDs(fds)
			} else {
				q := &servedQueue{a: a, fds: fds}
				h.served[pa.ID] = q
				failure = h.start(q)
			}
			if err := h.ops.Attached(pa.ID, failure); err != nil && !errors.Is(err, hv.ErrPortal) {
				h.t.Error(err)
			}
		}
	}
}

// start serves q.
func (h *host) start(q *servedQueue) error {
	if h.loop != nil {
		return h.loop.attach(q.a, q.fds)
	}
	q.srv = &ringtest.BlkServer{Disk: h.disk, Sectors: sectors, NQueues: 2, ID: "portal"}
	var mem []vhostuser.MemRegion
	for _, r := range q.a.Regions {
		mem = append(mem, vhostuser.MemRegion{FD: q.fds[r.FD], Offset: r.Offset, Size: r.Size, GPA: r.Base})
	}
	if err := q.srv.SetMemory(mem); err != nil {
		return err
	}
	r := q.a.Queues[0]
	if err := q.srv.SetInflight(vhostuser.InflightArea{FD: q.fds[q.a.Log], Size: q.a.LogSize, QueueSize: r.Size}); err != nil {
		return err
	}
	at := func(i int) int {
		if i < 0 {
			return -1
		}
		return q.fds[i]
	}
	return q.srv.Start(vhostuser.QueueState{
		Index: int(r.Index), LastAvail: r.LastAvail, Kick: at(r.Kick), Call: at(r.Call), Err: -1,
		Ring: ring.Queue{Size: r.Size, Desc: r.Desc, Avail: r.Avail, Used: r.Used, Features: q.a.Features},
	})
}

func (h *host) stop(q *servedQueue) {
	h.pause(q)
	closeFDs(q.fds)
}

func (h *host) pause(q *servedQueue) {
	if h.loop != nil {
		h.loop.detach(q.a.ID)
		return
	}
	if _, err := q.srv.Stop(int(q.a.Queues[0].Index)); err != nil {
		h.t.Error(err)
	}
	for _, err := range q.srv.Errors() {
		h.t.Error(err)
	}
	q.srv.Disconnected(nil)
}

// replaceDriver stops the fake driver VM and starts another, on the same descriptors.
func (h *host) replaceDriver() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, q := range h.served {
		h.pause(q)
	}
	for _, q := range h.served {
		if err := h.start(q); err != nil {
			h.t.Error(err)
		}
	}
}

// close ends the host, as a graild that is killed; the queues go on being served.
func (h *host) close() {
	close(h.quit)
	<-h.done
	h.ops.Close()
}

func (h *host) count() (served, attaches int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.served), h.attaches
}
