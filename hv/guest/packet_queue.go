package guest

import (
	"fmt"
	"sync"
	"time"

	"github.com/grailos/grail/hv/abi"
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
	epoch  epoch
	all    []*packetQueue // of the port
	mem    []byte
	off    uint64 // of mem in the buffers
	size   uint64 // of a buffer
	frame  int    // longest frame
	free   []uint32
	sent   []uint32 // bytes that a buffer was sent with
	spare  []bool   // for restart
	done   [packetBatch]ring.Completion
	n, at  int // of done: filled, consumed
	err    error

	receives bool
}

func newPacketQueue(drv *ring.Driver, kick, call ring.Doorbell, e epoch, mem []byte, off uint64, g *NetGrant) *packetQueue {
	q := &packetQueue{
		drv: drv, kick: kick, epoch: e, mem: mem, off: off, size: g.bufferBytes(), frame: g.FrameBytes(),
		free: make([]uint32, 0, g.QueueSize), sent: make([]uint32, g.QueueSize), spare: make([]bool, g.QueueSize),
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
		q.offer(uint32(i))
	}
	q.publish()
}

// offer gives buffer i to the driver VM, to be filled, or to be sent with its sent bytes. While the driver VM is known to have broken a
// rule it does nothing: restart will.
func (q *packetQueue) offer(i uint32) {
	seg := [1]ring.Segment{{Addr: abi.BuffersAt + q.off + uint64(i)*q.size, Len: uint32(q.size)}}
	var err error
	if q.receives {
		err = q.drv.Add(nil, seg[:], uint64(i))
	} else {
		seg[0].Len = q.sent[i]
		err = q.drv.Add(seg[:], nil, uint64(i))
	}
	if err != nil && q.drv.Err() == nil {
		panic(fmt.Sprintf("guest: no room for a buffer, of which there is one a descriptor: %v", err))
	}
}

// restart starts the ring anew, with every buffer that the driver VM had. q.mu is held.
func (q *packetQueue) restart() {
	clear(q.spare)
	for _, i := range q.free {
		q.spare[i] = true
	}
	for _, c := range q.done[q.at:q.n] {
		q.spare[c.Token] = true
	}
	q.epoch.begin(q.drv, func() {
		for i, spare := range q.spare {
			if !spare {
				q.offer(uint32(i))
			}
		}
	})
	q.kick.Ring() // an error is not fatal: rekickAfter tries again
}

// renew starts the queue anew if that is to be done, and then the port's others, without which it is not served; one that somebody
// uses is left to him. q.mu is held.
func (q *packetQueue) renew() {
	if !q.epoch.over() {
		return
	}
	q.restart()
	q.renewOthers()
}

// renewOthers does the same for the port's other queues that nobody uses.
func (q *packetQueue) renewOthers() {
	for _, o := range q.all {
		if o != q && o.mu.TryLock() {
			if o.epoch.over() {
				o.restart()
			}
			o.mu.Unlock()
		}
	}
}

func (q *packetQueue) publish() {
	if q.drv.Publish() {
		q.kick.Ring() // an error is not fatal: rekickAfter tries again
	}
}

// fail ends the queue: the host refuses to let us wait.
func (q *packetQueue) fail(err error) error {
	if q.err == nil {
		q.err = fmt.Errorf("guest: packet queue is broken: %w", err)
	}
	return q.err
}

// used fetches completions, as long as the driver VM keeps the rules, and returns how many.
func (q *packetQueue) used() int {
	if q.drv.Err() != nil {
		return 0
	}
	n, err := q.drv.Used(q.done[:])
	if err != nil {
		q.epoch.complain(q.drv, err)
	}
	return n
}

// take fetches completions into done, and waits up to timeout for the first one; negative means for ever. It reports false
// when time is up. q.mu is held all the time.
func (q *packetQueue) take(timeout time.Duration) (bool, error) {
	var until time.Time
	if timeout > 0 {
		until = time.Now().Add(timeout)
	}
	for {
		if n := q.used(); n > 0 {
			q.n, q.at = n, 0
			return true, nil
		}
		q.renew()
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
			q.renewOthers()
		}
	}
}

// Send copies frames to the queue, in order, and returns how many it took: all of them, unless there is an error. It waits
// while the queue is full. Frames that are sent may still be lost. Errors: ErrFrame, before which the
// frames in front were sent.
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
		q.sent[i] = uint32(virtionet.HeaderBytes + k)
		q.offer(i)
	}
	q.publish()
	q.renew()
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
// longer than its buffer's capacity is cut off. It returns how many it filled.
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
			q.offer(uint32(c.Token))
		}
		q.publish()
	}
	return n, nil
}
