package guest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// Layout of a request's own piece of the grant, slotBytes long: what is not data.
const (
	slotHeader  = 0  // virtioblk.Header
	slotStatus  = 16 // one byte, written by the driver
	slotPayload = 32 // a virtioblk.Range, or the driver's identification
	slotBytes   = 64

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
	data  uint64 // grant offset of the data
	err   error  // set when done

	slot    []byte // slotBytes of the grant
	slotOff uint64
	read    [2]ring.Segment
	write   [2]ring.Segment
}

// newQueue returns the queue whose driver is drv and whose slots lie at grant offset off.
func newQueue(drv *ring.Driver, kick, call ring.Doorbell, mem []byte, off uint64, depth int) *queue {
	q := &queue{
		kick: kick, drv: drv, requests: make([]request, depth),
		poller: ring.NewPoller(ring.PollerConfig{Poll: pollHook()}), done: make([]ring.Completion, min(depth, 64)),
	}
	q.poller.Add(drv, call)
	for i := range q.requests {
		r := &q.requests[i]
		r.q, r.slotOff = q, off+uint64(i)*slotBytes
		r.slot = mem[r.slotOff:][:slotBytes:slotBytes]
		r.wake = make(chan struct{}, 1)
		q.free = append(q.free, r)
	}
	return q
}

// start queues a request for bytes of data at grant offset data (0: none), and waits while the queue is full.
// The payload, if any, goes where a discard's range goes. Errors: the driver's offence.
func (q *queue) start(kind uint32, off int64, data uint64, bytes uint32, payload []byte) (*request, error) {
	q.mu.Lock()
	r, err := q.slot()
	if err != nil {
		q.mu.Unlock()
		return nil, err
	}
	r.used, r.done, r.err = true, false, nil
	r.kind, r.off, r.bytes, r.data = kind, off, bytes, data
	q.load.Add(1)
	read, write := r.chain(payload)
	if err := q.drv.Add(read, write, uint64(r.index())); err != nil {
		// There is a descriptor for each slot, so this can only be the driver's offence.
		q.fail(err)
		q.finish(r)
		q.mu.Unlock()
		return nil, q.err
	}
	kick := q.drv.Publish()
	q.mu.Unlock()
	if kick {
		q.kick.Ring() // an error is not fatal: the request is queued, and rekickAfter tries again
	}
	return r, nil
}

// chain fills in the request's slot and returns its segments.
func (r *request) chain(payload []byte) (read, write []ring.Segment) {
	h := virtioblk.Header{Type: r.kind}
	if r.kind == virtioblk.TypeIn || r.kind == virtioblk.TypeOut {
		h.Sector = uint64(r.off) / virtioblk.SectorSize
	}
	h.Encode(r.slot[slotHeader:])
	r.slot[slotStatus] = statusPending
	r.read[0] = ring.Segment{Addr: r.slotOff + slotHeader, Len: virtioblk.HeaderBytes}
	r.write[0] = ring.Segment{Addr: r.slotOff + slotStatus, Len: virtioblk.StatusBytes}
	read, write = r.read[:1], r.write[:1]
	switch r.kind {
	case virtioblk.TypeIn, virtioblk.TypeGetID:
		r.write[1], r.write[0] = r.write[0], ring.Segment{Addr: r.data, Len: r.bytes}
		write = r.write[:2]
	case virtioblk.TypeOut:
		r.read[1] = ring.Segment{Addr: r.data, Len: r.bytes}
		read = r.read[:2]
	case virtioblk.TypeDiscard, virtioblk.TypeWriteZeroes:
		n := copy(r.slot[slotPayload:], payload)
		r.read[1] = ring.Segment{Addr: r.slotOff + slotPayload, Len: uint32(n)}
		read = r.read[:2]
	}
	return read, write
}

func (r *request) index() int { return int(r.slotOff-r.q.requests[0].slotOff) / slotBytes }

// complete takes in one completion. q.mu is held.
func (q *queue) complete(c ring.Completion) {
	r := &q.requests[c.Token]
	switch status := r.slot[slotStatus]; {
	case status == virtioblk.StatusOK && r.kind == virtioblk.TypeIn && c.Written < r.bytes:
		r.err = &RequestError{Kind: r.kind, Offset: r.off, Bytes: r.bytes, Err: errShort}
	case status == virtioblk.StatusOK:
	case status == virtioblk.StatusUnsupported:
		r.err = &RequestError{Kind: r.kind, Offset: r.off, Bytes: r.bytes, Err: errors.ErrUnsupported}
	default:
		r.err = &RequestError{Kind: r.kind, Offset: r.off, Bytes: r.bytes, Err: ErrDevice}
	}
	q.settle(r)
}

// settle marks r done and wakes its owner. q.mu is held.
func (q *queue) settle(r *request) {
	r.done = true
	q.unclaimed++
	q.waiting.release(&r.waiter)
}

// fail ends the queue for good: its driver broke the rules, or the host refuses to let us wait. q.mu is held.
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

// reap polls the ring until want is done, or until anything is done when want is nil. q.mu is held on entry
// and on return, and not in between. Precondition: !q.reaping.
func (q *queue) reap(want *request) {
	q.reaping = true
	for q.err == nil {
		n, err := q.drv.Used(q.done)
		for _, c := range q.done[:n] {
			q.complete(c)
		}
		if err != nil {
			q.fail(err)
		}
		if want != nil && want.done || want == nil && q.unclaimed > 0 {
			break
		}
		if n > 0 {
			continue
		}
		q.mu.Unlock()
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
