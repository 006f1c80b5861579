package guest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// What a request has of the grant besides data: slotBytes of the rings part, which the driver cannot write to, behind an indirect table;
// and a status byte in the buffers.
const (
	slotHeader  = 0  // virtioblk.Header
	slotPayload = 16 // a virtioblk.Range
	slotBytes   = 32

	statusBytes = 64 // a cache line each

	slotSegments = 4 // longest chain: header, data, status
)

// statusPending is what a status byte holds before the driver writes it.
const statusPending = 0xff

// rekickAfter is how long a request may be outstanding before the driver's doorbell is rung again. A driver
// that was replaced looks at its rings without being told; this is for a doorbell lost in a crash.
const rekickAfter = time.Second

// queue is one virtqueue and the requests on it. Any number of goroutines share it. One of those that wait
// for a request, the reaper, polls the ring for all; when it leaves, it appoints another.
type queue struct {
	kick ring.Doorbell
	load atomic.Int32 // requests outstanding or about to be, to choose a queue by

	mu       sync.Mutex
	drv      *ring.Driver // guarded by mu; Pending, Arm and Disarm belong to the reaper, which needs no lock
	epoch    epoch
	others   func() // starts the disk's other queues anew; nil: there are none
	requests []request
	free     []*request // not in use
	reaping  bool
	waiting  waiters // wait for a request
	starving waiters // wait for a free request
	err      error   // why the queue is broken, or nil

	unclaimed int    // requests that are done and not yet waited for
	rekicks   uint64 // times that rekickAfter passed

	poller *ring.Poller      // the reaper's
	done   []ring.Completion // the reaper's
}

// request is one slot of a queue.
type request struct {
	waiter
	q    *queue
	gen  uint32 // counts uses, so that a stale Ticket is noticed
	used bool   // outstanding, or done and not yet waited for
	done bool

	kind  uint32
	off   int64  // for messages
	bytes uint32 // of data
	data  uint64 // offset of the data in the buffers
	err   error  // set when done

	index    uint64 // in the queue
	slot     []byte // slotBytes
	slotAt   uint64 // the slot's address
	status   []byte // one byte
	statusAt uint64
	payload  [virtioblk.RangeBytes]byte // of a discard
	read     [2]ring.Segment
	write    [2]ring.Segment
}

// newQueue returns the queue whose driver is drv, without requests.
func newQueue(drv *ring.Driver, kick, call ring.Doorbell, e epoch) *queue {
	q := &queue{kick: kick, drv: drv, epoch: e, poller: ring.NewPoller(ring.PollerConfig{Poll: pollHook()})}
	q.poller.Add(drv, call)
	return q
}

// addRequests makes depth requests, whose slots begin at slots in m.Rings and whose status bytes at status in m.Buffers.
func (q *queue) addRequests(m *Memory, depth int, slots, status uint64) {
	q.requests, q.done = make([]request, depth), make([]ring.Completion, min(depth, 64))
	for i := range q.requests {
		r := &q.requests[i]
		r.q, r.index = q, uint64(i)
		at := slots + r.index*slotBytes
		r.slot, r.slotAt = m.Rings[at:][:slotBytes:slotBytes], abi.RingsAt+at
		at = status + r.index*statusBytes
		r.status, r.statusAt = m.Buffers[at:][:1:1], abi.BuffersAt+at
		r.wake = make(chan struct{}, 1)
		q.free = append(q.free, r)
	}
}

// start queues a request for bytes of data at offset data of the buffers (0: none), and waits while the queue is full.
// The payload, if any, goes where a discard's range goes. Errors: the host refuses to let us wait.
func (q *queue) start(kind uint32, off int64, data uint64, bytes uint32, payload []byte) (*request, error) {
	q.mu.Lock()
	r, err := q.slot()
	if err != nil {
		q.mu.Unlock()
		return nil, err
	}
	r.used, r.done, r.err = true, false, nil
	r.kind, r.off, r.bytes, r.data = kind, off, bytes, data
	copy(r.payload[:], payload)
	q.load.Add(1)
	if q.epoch.over() && !q.reaping { // else the reaper sees to it
		q.restart() // with this request
		others := q.others
		q.mu.Unlock()
		if others != nil {
			others()
		}
		return r, nil
	}
	q.add(r)
	kick := q.drv.Publish()
	q.mu.Unlock()
	if kick {
		q.kick.Ring() // an error is not fatal: the request is queued, and rekickAfter tries again
	}
	return r, nil
}

// add offers r to the driver VM. While the driver VM is known to have broken a rule it does nothing: restart will. q.mu is held.
func (q *queue) add(r *request) {
	read, write := r.chain()
	if err := q.drv.Add(read, write, r.index); err != nil && q.drv.Err() == nil {
		panic(fmt.Sprintf("guest: no room for a request, of which there is one a descriptor: %v", err))
	}
}

// restart starts the ring anew, with every request that is outstanding: all of them can be done twice. q.mu is held, and there is no
// reaper but the caller.
func (q *queue) restart() {
	q.epoch.begin(q.drv, func() {
		for i := range q.requests {
			if r := &q.requests[i]; r.used && !r.done {
				q.add(r)
			}
		}
	})
	q.kick.Ring() // an error is not fatal: rekickAfter tries again
}

// chain fills in the request's slot and returns its segments.
func (r *request) chain() (read, write []ring.Segment) {
	h := virtioblk.Header{Type: r.kind}
	if r.kind == virtioblk.TypeIn || r.kind == virtioblk.TypeOut {
		h.Sector = uint64(r.off) / virtioblk.SectorSize
	}
	h.Encode(r.slot[slotHeader:])
	r.status[0] = statusPending
	r.read[0] = ring.Segment{Addr: r.slotAt + slotHeader, Len: virtioblk.HeaderBytes}
	r.write[0] = ring.Segment{Addr: r.statusAt, Len: virtioblk.StatusBytes}
	read, write = r.read[:1], r.write[:1]
	switch r.kind {
	case virtioblk.TypeIn, virtioblk.TypeGetID:
		r.write[1], r.write[0] = r.write[0], ring.Segment{Addr: abi.BuffersAt + r.data, Len: r.bytes}
		write = r.write[:2]
	case virtioblk.TypeOut:
		r.read[1] = ring.Segment{Addr: abi.BuffersAt + r.data, Len: r.bytes}
		read = r.read[:2]
	case virtioblk.TypeDiscard, virtioblk.TypeWriteZeroes:
		n := copy(r.slot[slotPayload:], r.payload[:])
		r.read[1] = ring.Segment{Addr: r.slotAt + slotPayload, Len: uint32(n)}
		read = r.read[:2]
	}
	return read, write
}

// complete takes in one completion. q.mu is held. Errors: errStatus; the request is then outstanding still.
func (q *queue) complete(c ring.Completion) error {
	r := &q.requests[c.Token]
	switch status := r.status[0]; {
	case status == virtioblk.StatusOK && r.kind == virtioblk.TypeIn && c.Written < r.bytes:
		r.err = &RequestError{Kind: r.kind, Offset: r.off, Bytes: r.bytes, Err: errShort}
	case status == virtioblk.StatusOK:
	case status == virtioblk.StatusUnsupported:
		r.err = &RequestError{Kind: r.kind, Offset: r.off, Bytes: r.bytes, Err: errors.ErrUnsupported}
	case status == virtioblk.StatusIOErr:
		r.err = &RequestError{Kind: r.kind, Offset: r.off, Bytes: r.bytes, Err: ErrDevice}
	default:
		return errStatus
	}
	q.settle(r)
	return nil
}

// settle marks r done and wakes its owner. q.mu is held.
func (q *queue) settle(r *request) {
	r.done = true
	q.unclaimed++
	q.waiting.release(&r.waiter)
}

// fail ends the queue for good: the host refuses to let us wait. q.mu is held.
func (q *queue) fail(err error) {
	if q.err != nil {
		return
	}
	q.err = fmt.Errorf("guest: disk queue is broken: %w", err)
	for i := range q.requests {
		if r := &q.requests[i]; r.used && !r.done {
			r.err = q.err
			q.settle(r)
		}
	}
	q.starving.wakeFirst()
}

// await blocks until r is done, frees it, and returns its outcome.
func (q *queue) await(r *request) error {
	q.mu.Lock()
	for !r.done {
		if q.reaping {
			q.sleep(&r.waiter, &q.waiting)
		} else {
			q.reap(r)
		}
	}
	err := q.finish(r)
	q.mu.Unlock()
	return err
}

// slot returns a free request, for which it waits. q.mu is held on entry and on return. Errors: q.err.
func (q *queue) slot() (*request, error) {
	var w *waiter
	for len(q.free) == 0 && q.err == nil {
		if !q.reaping && q.unclaimed == 0 {
			q.reap(nil)
			continue
		}
		// Whoever waits for a request that is done will free it soon.
		if w == nil {
			w = &waiter{wake: make(chan struct{}, 1)}
		}
		q.sleep(w, &q.starving)
	}
	if q.err != nil {
		q.starving.wakeFirst() // pass the bad news on
		return nil, q.err
	}
	r := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	return r, nil
}

// finish frees r and returns its outcome. q.mu is held.
func (q *queue) finish(r *request) error {
	err := r.err
	r.used = false
	r.gen++
	q.unclaimed--
	q.load.Add(-1)
	q.free = append(q.free, r)
	q.starving.wakeFirst()
	return err
}

// sleep waits in list. q.mu is held on entry and on return.
func (q *queue) sleep(w *waiter, list *waiters) {
	list.push(w)
	q.mu.Unlock()
	<-w.wake
	q.mu.Lock()
}

// take takes in what is completed and returns how much that is, as long as the driver VM keeps the rules. q.mu is held.
func (q *queue) take() int {
	if q.drv.Err() != nil {
		return 0
	}
	n, err := q.drv.Used(q.done)
	for _, c := range q.done[:n] {
		if e := q.complete(c); e != nil {
			err = e
		}
	}
	if err != nil {
		q.epoch.complain(q.drv, err)
	}
	return n
}

// reap polls the ring until want is done, or until anything is done when want is nil. q.mu is held on entry
// and on return, and not in between. Precondition: !q.reaping.
func (q *queue) reap(want *request) {
	q.reaping = true
	restarted := false
	for q.err == nil {
		n := q.take()
		if want != nil && want.done || want == nil && q.unclaimed > 0 {
			break
		}
		if n > 0 {
			continue
		}
		if q.epoch.over() {
			q.restart()
			restarted = true
		}
		q.mu.Unlock()
		if restarted && q.others != nil {
			q.others()
		}
		restarted = false
		wake, err := q.poller.Wait(rekickAfter)
		q.mu.Lock()
		switch {
		case err != nil:
			q.fail(err)
		case wake == ring.WakeTimeout:
			q.rekicks++
			q.kick.Ring() // an error is not fatal: the next time-out tries again
		}
	}
	q.reaping = false
	if !q.waiting.wakeFirst() {
		q.starving.wakeFirst()
	}
}
