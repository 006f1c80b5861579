package vswitch

import (
	"errors"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// maxBuffers bounds the buffers that one frame may take.
const maxBuffers = 64

// errBuffer reports a receive buffer without room for a header, or with memory that is not writable.
var errBuffer = errors.New("receive buffer is too small or not writable")

// rxQueue is a queue by which a client receives. It is a ring.Source that has work when a sender waits for buffers.
type rxQueue struct {
	p       *port
	dev     *ring.Device
	call    ring.Doorbell
	merge   bool
	spare   [maxBuffers]ring.Chain // the first n are fetched and not yet used
	n       int
	wanted  int // transmit queues that wait for buffers
	touched bool
	use     share.Use
}

// Pending implements ring.Source.
func (q *rxQueue) Pending() bool { return q.wanted > 0 && q.dev.Pending() }

// Arm implements ring.Source.
func (q *rxQueue) Arm() bool { return q.wanted == 0 || q.dev.Arm() }

// Disarm implements ring.Source.
func (q *rxQueue) Disarm() {
	if q.wanted > 0 {
		q.dev.Disarm()
	}
}

func (q *rxQueue) takes() uint64 { return q.p.features }
func (q *rxQueue) longest() int  { return q.p.longest }

// fetch takes one more buffer from the client.
func (q *rxQueue) fetch() Reason {
	c := &q.spare[q.n]
	ok, err := q.dev.Pop(c)
	if err == nil && ok && (len(c.Readable) > 0 || c.WritableBytes < virtionet.HeaderBytes) {
		err = errBuffer
	}
	if err != nil {
		q.p.sw.kill(q.p, err)
		return DropRxFull
	}
	if !ok {
		return DropRxFull
	}
	q.n++
	return Delivered
}

// put implements sink.
func (q *rxQueue) put(h *virtionet.Header, head []byte, body [][]byte, n int) Reason {
	if q.p.dead {
		return DropRxFull
	}
	total := n + virtionet.HeaderBytes
	k, room := 0, 0
	for room < total {
		if k == q.n {
			if k == maxBuffers {
				return DropRxSmall
			}
			if r := q.fetch(); r != Delivered {
				return r
			}
		}
		room += int(q.spare[k].WritableBytes)
		k++
		if !q.merge && room < total {
			return DropRxSmall
		}
	}
	out := *h
	out.NumBuffers = uint16(k)
	if c := &q.spare[0]; k == 1 && len(c.Writable) == 1 {
		w := c.Writable[0]
		out.Encode(w)
		at := virtionet.HeaderBytes
		at += copy(w[at:], head)
		for _, b := range body {
			at += copy(w[at:], b)
		}
		q.dev.Push(c.Head, uint32(total))
	} else {
		q.scatter(&out, head, body, k, total)
	}
	// What was fetched and not used moves to the front.
	if q.n -= k; q.n > 0 {
		for i := range q.n {
			q.spare[i], q.spare[i+k] = q.spare[i+k], q.spare[i]
		}
	}
	p := q.p
	p.stalled = false
	p.count.RxPackets++
	p.count.RxBytes += uint64(n)
	if q.use.Ops++; p.sw.inbound {
		p.sw.meter.Note(&q.use.Account, opCost+int64(n))
	}
	q.use.Bytes += uint64(n)
	p.sw.moved(uint64(n))
	if !q.touched {
		q.touched = true
		p.sw.rxTouched = append(p.sw.rxTouched, q)
	}
	return Delivered
}

// scatter fills the first k buffers.
func (q *rxQueue) scatter(h *virtionet.Header, head []byte, body [][]byte, k, total int) {
	var wire [virtionet.HeaderBytes]byte
	h.Encode(wire[:])
	w := writer{chains: q.spare[:k]}
	w.write(wire[:])
	w.write(head)
	for _, b := range body {
		w.write(b)
	}
	for i := range k {
		c := &q.spare[i]
		n := min(total, int(c.WritableBytes))
		total -= n
		q.dev.Push(c.Head, uint32(n))
	}
}

// writer fills the writable segments of chains, one after the other.
type writer struct {
	chains []ring.Chain
	seg    int // of the first chain
	off    int // in it
}

func (w *writer) write(b []byte) {
	for len(b) > 0 && len(w.chains) > 0 {
		segs := w.chains[0].Writable
		if w.seg == len(segs) {
			w.chains, w.seg = w.chains[1:], 0
			continue
		}
		n := copy(segs[w.seg][w.off:], b)
		b = b[n:]
		if w.off += n; w.off == len(segs[w.seg]) {
			w.seg, w.off = w.seg+1, 0
		}
	}
}
