package guest

import (
	"fmt"
	"sync"
	"time"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// packetBatch is how many completions are taken at once.
const packetBatch = 64

// Pair is a queue to send by and one to receive by. It is safe for concurrent use; senders exclude each other, and so do
// receivers.
type Pair struct{ rx, tx *packetQueue }

// packetQueue is one queue and its buffers, one a descriptor.
type packetQueue struct {
	mu     sync.Mutex
	drv    *ring.Driver
	kick   ring.Doorbell
	poller *ring.Poller
	mem    []byte
	off    uint64 // of mem in the grant
	size   uint64 // of a buffer
	frame  int    // longest frame
	free   []uint32
	done   [packetBatch]ring.Completion
	n, at  int // of done: filled, consumed
	err    error
}

func newPacketQueue(drv *ring.Driver, kick, call ring.Doorbell, mem []byte, off uint64, g *NetGrant) *packetQueue {
	q := &packetQueue{
		drv: drv, kick: kick, mem: mem, off: off, size: g.bufferBytes(), frame: g.FrameBytes(),
		free:   make([]uint32, 0, g.QueueSize),
		poller: ring.NewPoller(ring.PollerConfig{Poll: pollHook()}),
	}
	q.poller.Add(drv, call)
	return q
}

// buffer returns buffer i.
func (q *packetQueue) buffer(i uint32) []byte {
	at := uint64(i) * q.size
	return q.mem[at : at+q.size : at+q.size]
}

func (q *packetQueue) allFree() {
	for i := range cap(q.free) {
		q.free = append(q.free, uint32(i))
	}
}

// offerAll gives every buffer to the driver VM.
func (q *packetQueue) offerAll() {
	for i := range cap(q.free) {
		if err := q.offer(uint32(i)); err != nil {
			panic(fmt.Sprintf("guest: a fresh queue takes no buffer: %v", err))
		}
	}
	q.publish()
}

func (q *packetQueue) offer(i uint32) error {
	return q.drv.Add(nil, []ring.Segment{{Addr: q.off + uint64(i)*q.size, Len: uint32(q.size)}}, uint64(i))
}

func (q *packetQueue) publish() {
	if q.drv.Publish() {
		q.kick.Ring() // an error is not fatal: rekickAfter tries again
	}
}

// fail ends the queue: the driver VM broke the rules, or the host refuses to let us wait.
func (q *packetQueue) fail(err error) error {
	if q.err == nil {
		q.err = fmt.Errorf("guest: packet queue is broken: %w", err)
	}
	return q.err
}

// take fetches completions into done, and waits up to timeout for the first one; negative means for ever. It reports false
// when time is up. q.mu is held all the time.
func (q *packetQueue) take(timeout time.Duration) (bool, error) {
	var until time.Time
	if timeout > 0 {
		until = time.Now().Add(timeout)
	}
	for {
		n, err := q.drv.Used(q.done[:])
		if err != nil && n == 0 {
			return false, q.fail(err)
		}
		if n > 0 {
			q.n, q.at = n, 0
			return true, nil
		}
		if timeout == 0 {
			return false, nil
		}
		wait := rekickAfter
		if timeout > 0 {
			left := time.Until(until)
			if left <= 0 {
				return false, nil
			}
			wait = min(wait, left)
		}
		wake, err := q.poller.Wait(wait)
		if err != nil {
			return false, q.fail(err)
		}
		if wake == ring.WakeTimeout && wait == rekickAfter {
			q.kick.Ring() // for a doorbell lost in a crash; an error is not fatal
		}
	}
}

// Send copies frames to the queue, in order, and returns how many it took: all of them, unless there is an error. It waits
// while the queue is full. Frames that are sent may still be lost. Errors: ErrFrame, before which the
// frames in front were sent; the driver VM broke the ring's rules.
func (p *Pair) Send(frames ...[]byte) (int, error) {
	q := p.tx
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return 0, q.err
	}
	for n, f := range frames {
		if len(f) < 14 || len(f) > q.frame {
			q.publish()
			return n, fmt.Errorf("%w: %d bytes, want 14 to %d", ErrFrame, len(f), q.frame)
		}
		for len(q.free) == 0 {
			q.publish()
			if _, err := q.take(-1); err != nil {
				return n, err
			}
			q.reap()
		}
		i := q.free[len(q.free)-1]
		q.free = q.free[:len(q.free)-1]
		b := q.buffer(i)
		clear(b[:virtionet.HeaderBytes])
		k := copy(b[virtionet.HeaderBytes:], f)
		seg := [1]ring.Segment{{Addr: q.off + uint64(i)*q.size, Len: uint32(virtionet.HeaderBytes + k)}}
		if err := q.drv.Add(seg[:], nil, uint64(i)); err != nil {
			return n, q.fail(err)
		}
	}
	q.publish()
	// Buffers that came back meanwhile cost nothing to take now.
	if len(q.free) < cap(q.free)/2 {
		if ok, err := q.take(0); err != nil {
			return len(frames), err
		} else if ok {
			q.reap()
		}
	}
	return len(frames), nil
}

// reap frees the buffers that take has found.
func (q *packetQueue) reap() {
	for ; q.at < q.n; q.at++ {
		q.free = append(q.free, uint32(q.done[q.at].Token))
	}
}

// Receive waits for at least one frame, and copies as many as there are into bufs, whose lengths it sets; a frame that is
// longer than its buffer's capacity is cut off. It returns how many it filled. Errors: the driver VM broke the ring's rules.
func (p *Pair) Receive(bufs [][]byte) (int, error) { return p.ReceiveWithin(bufs, -1) }

// ReceiveWithin is Receive with a limit: negative means none, 0 only looks. Errors: ErrTimeout.
func (p *Pair) ReceiveWithin(bufs [][]byte, timeout time.Duration) (int, error) {
	q := p.rx
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return 0, q.err
	}
	if len(bufs) == 0 {
		return 0, nil
	}
	n := 0
	for n == 0 {
		if q.at == q.n {
			ok, err := q.take(timeout)
			if err != nil {
				return 0, err
			}
			if !ok {
				return 0, ErrTimeout
			}
		}
		for ; n < len(bufs) && q.at < q.n; q.at++ {
			c := q.done[q.at]
			if c.Written >= virtionet.HeaderBytes+14 { // else nobody can use it
				bufs[n] = bufs[n][:cap(bufs[n])]
				bufs[n] = bufs[n][:copy(bufs[n], q.buffer(uint32(c.Token))[virtionet.HeaderBytes:c.Written])]
				n++
			}
			if err := q.offer(uint32(c.Token)); err != nil {
				return n, q.fail(err)
			}
		}
		q.publish()
	}
	return n, nil
}
