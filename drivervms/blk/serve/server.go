package serve

import (
	"time"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/state"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// Fairness: what one queue may put into one turn of a round, and how much makes a round. To perform a round costs
// an exit from the VM, which is to be a small part of the whole; but nobody's requests that come meanwhile are
// to wait long.
const (
	quantum      = 64      // requests
	quantumBytes = 2 << 20 // bytes, after which no further request is taken
	roundBytes   = 8 << 20 // bytes, after which there is no further turn
)

// Server serves any number of clients. It belongs to one goroutine.
type Server struct {
	// Deaths holds the clients that broke their rings' rules since the owner last emptied it.
	Deaths []Death

	// Requests and Bytes count what was completed.
	Requests, Bytes uint64

	// Refuse makes it fail every request with an I/O error, of any disk; it has none. It is set before the first Attach.
	Refuse bool

	// Step, when not nil, is called between the steps of a round; tests crash there.
	Step func(Step)

	dev      Device
	disks    map[string]Disk
	clients  map[uint64]*client
	queues   []*queue // of all clients that are served
	counters *state.Cells[Counters]
	next     int // queue that the next round starts with
	poller   *ring.Poller

	works   []work
	ops     []Op
	touched []*queue // with completions to be published

	parked  []parked // wait for the next flush
	flying  []parked // wait for the flush in progress
	flushes []Op     // the flush in progress
	lane    *lane    // nil until it is needed
	inLane  bool     // the flush in progress is the lane's
}

// Death says that a client is no longer served.
type Death struct {
	ID     uint64
	Reason string
}

// Step names the points between the steps of a round.
type Step int

// The steps of a round.
const (
	StepTaken     Step = iota // requests are taken and logged, no device operation was started
	StepDone                  // the device operations are done, nothing is completed
	StepFlushed               // a flush is done, nothing that waited for it is completed
	StepCompleted             // completions are written and not yet published
	StepPublished             // completions are published, a doorbell is not rung
)

// New returns a server of the given disks. The poller's bounds are those of the driver's one worker.
func New(dev Device, disks []Disk, poll ring.PollerConfig) *Server {
	s := &Server{
		dev: dev, disks: map[string]Disk{}, clients: map[uint64]*client{}, poller: ring.NewPoller(poll),
		counters: state.NewCells[Counters](nil),
		works:    make([]work, abi.MaxDevBatch),
		ops:      make([]Op, 0, abi.MaxDevBatch),
	}
	for _, d := range disks {
		s.disks[d.Name] = d
	}
	for i := range s.works {
		s.works[i].chain.Readable = make([][]byte, 0, 8)
		s.works[i].chain.Writable = make([][]byte, 0, 8)
	}
	return s
}

// Watch makes Wait return ring.WakeWatch when fd is readable.
func (s *Server) Watch(fd int) { s.poller.Watch(fd) }

// Wait blocks until a client may have work or a watched descriptor is readable, or timeout has passed;
// negative means for ever.
func (s *Server) Wait(timeout time.Duration) (ring.Wake, error) { return s.poller.Wait(timeout) }

// Stats returns what waiting cost.
func (s *Server) Stats() ring.PollerStats { return s.poller.Stats() }

// Round takes what the clients offer, at most one batch, performs it and completes it. It returns the number
// of requests taken. It does not allocate once its buffers have grown, unless a client dies.
func (s *Server) Round() int {
	s.collect()
	works := s.take()
	if len(works) > 0 {
		s.step(StepTaken)
		if len(s.ops) > 0 {
			s.dev.Do(s.ops)
		}
		s.step(StepDone)
		for i := range works {
			w := &works[i]
			if w.status == virtioblk.StatusOK {
				w.settle(s.ops)
			}
			if w.flush && w.status == virtioblk.StatusOK {
				s.park(w)
			} else {
				s.finish(w.q, &w.req, w.status)
			}
		}
	}
	s.publish() // before a flush, which may take long
	s.flush()
	s.publish()
	return len(works)
}

// finish completes a request; publish shows it to the client.
func (s *Server) finish(q *queue, r *virtioblk.Request, status byte) {
	if q.c.dead {
		return
	}
	q.dev.Push(r.Head, r.Finish(status))
	if !q.touched {
		q.touched = true
		s.touched = append(s.touched, q)
	}
	s.Requests++
	s.Bytes += uint64(r.DataBytes)
	q.c.count.count(r, status)
}

// publish shows completions to the clients and rings those that asked for it.
func (s *Server) publish() {
	if len(s.touched) == 0 {
		return
	}
	s.step(StepCompleted)
	for _, q := range s.touched {
		q.touched = false
		if q.dev.Publish() {
			s.step(StepPublished)
			s.poller.Ring(q.call)
		}
	}
	clear(s.touched)
	s.touched = s.touched[:0]
}

// Close ends the Server's second thread, if it has one. Nothing is in progress.
func (s *Server) Close() {
	if s.lane != nil {
		s.drain()
		s.poller.Remove(s.lane)
		s.lane.close()
		s.lane = nil
	}
}

func (s *Server) step(p Step) {
	if s.Step != nil {
		s.Step(p)
	}
}

// take fetches requests, the queues in turn and each its quantum, as long as there are any and the batch has room, and
// plans their operations. The round starts with a different queue each time, so that a full batch does not always
// miss the same one.
func (s *Server) take() []work {
	s.ops = s.ops[:0]
	b := batch{}
	if s.next++; s.next >= len(s.queues) {
		s.next = 0
	}
	for {
		before := b.n
		if full := s.turn(&b); full || b.n == before || b.bytes >= roundBytes {
			return s.works[:b.n]
		}
	}
}

// batch counts what a round has taken.
type batch struct {
	n, segs int
	bytes   uint64
}

// turn takes each queue's quantum and reports whether the batch is full.
func (s *Server) turn(b *batch) (full bool) {
	queues := s.queues // stays as it is when a client is killed below
	for i := range queues {
		q := queues[(s.next+i)%len(queues)]
		if q.c.dead {
			continue
		}
		bytes := uint64(0)
		for k := 0; k < quantum && bytes < quantumBytes; k++ {
			if b.n == len(s.works) || len(s.ops)+MaxRanges > cap(s.ops) || b.segs+abi.MaxDevSegs > MaxSegments {
				return true
			}
			w := &s.works[b.n]
			ok, err := q.dev.Pop(&w.chain)
			if err == nil && ok {
				err = w.req.Parse(&w.chain)
			}
			if err != nil {
				s.kill(q.c, err)
				break
			}
			if !ok {
				break
			}
			w.q = q
			s.ops = w.plan(&q.c.limits, s.ops)
			b.segs += len(w.req.Data)
			bytes += uint64(w.req.DataBytes)
			b.n++
		}
		b.bytes += bytes
	}
	return false
}
