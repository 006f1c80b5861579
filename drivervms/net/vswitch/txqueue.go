package vswitch

import (
	"time"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// holdFor is how long a sender waits for a receiver without buffers before the frame is dropped, in ns. Longer than a
// receiver needs to give buffers back when it is alive; and a receiver that let this pass is not waited for
// again until it has used some.
const holdFor = int64(2 * time.Millisecond)

// txQueue is a queue by which a client sends. It is a ring.Source.
type txQueue struct {
	p       *port
	index   int // of the pair
	dev     *ring.Device
	call    ring.Doorbell
	chain   ring.Chain
	frame   frame
	done    []uint16 // heads to be given back, in order
	touched bool
	use     share.Use

	// A frame that waits for the buffers of on, until a time in ns.
	on    *rxQueue
	until int64

	// Where the last frame went, and from where it came.
	lastDst, lastGen uint64
	lastTo           *port
	lastSrc, srcGen  uint64
	lastLook         int64 // ns; of lastDst
	lastLearn        int64 // ns; of lastSrc
}

// Pending implements ring.Source.
func (q *txQueue) Pending() bool {
	if q.on != nil {
		return q.on.p.dead // else the receiver's queue says so
	}
	return q.dev.Pending() && !q.p.share.Held()
}

// Arm implements ring.Source. While a cap holds the client back its doorbell is of no use.
func (q *txQueue) Arm() bool { return q.on != nil || q.p.share.Held() || q.dev.Arm() }

// Disarm implements ring.Source.
func (q *txQueue) Disarm() { q.dev.Disarm() }

// hold keeps the frame in q.frame until to has buffers.
func (q *txQueue) hold(to *rxQueue) {
	q.on, q.until = to, q.p.sw.now+holdFor
	if to.wanted++; to.wanted == 1 {
		to.dev.Disarm()
	}
	q.p.sw.held++
}

// release ends a hold, if there is one.
func (q *txQueue) release() {
	if q.on == nil {
		return
	}
	q.on.wanted--
	q.on = nil
	q.p.sw.held--
}

// retry tries to deliver the frame that is held. It reports false when the frame still waits.
func (q *txQueue) retry() bool {
	s, to := q.p.sw, q.on
	r := DropRxFull
	if !to.p.dead {
		r = s.send(&q.frame, to)
	}
	if r == DropRxFull && !to.p.dead && s.now < q.until {
		return false
	}
	if r == DropRxFull {
		to.p.stalled = true
	}
	q.release()
	s.settle(q.p, to.p, r)
	q.finish()
	return true
}

// finish gives the frame's buffers back at the end of the round.
func (q *txQueue) finish() {
	q.done = append(q.done, q.chain.Head)
	if !q.touched {
		q.touched = true
		q.p.sw.txTouched = append(q.p.sw.txTouched, q)
	}
}

// mayHold reports whether f, which found no buffer at to, has been delivered in no part and can wait.
func mayHold(f *frame, to *rxQueue) bool {
	return !to.p.dead && !to.p.stalled && (f.hdr.GSOType == virtionet.GSONone || takesGSO(f.hdr.GSOType, to.takes()))
}
