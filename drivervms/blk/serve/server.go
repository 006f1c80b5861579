package serve

import (
	"time"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/state"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// Server serves any number of clients. It belongs to one goroutine.
type Server struct {
	// Deaths holds the clients that broke their rings' rules since the owner last emptied it.
	Deaths []Death

	// Requests and Bytes count what was completed.
	Requests, Bytes uint64

	// Refuse makes it fail every request with an I/O error, of any disk; it has none. It is set before the first Attach.
	Refuse bool

	// CPU returns the processor time that the driver has used in all, to be charged to the clients; nil: nothing is charged.
	CPU func() time.Duration

	// Step, when not nil, is called between the steps of a round; tests crash there.
	Step func(Step)

	dev      Device
	disks    map[string]Disk
	clients  map[uint64]*client
	queues   []*queue // of all clients that are served
	counters *state.Cells[Counters]
	poller   *ring.Poller

	clock   func() int64 // ns, monotonic
	now     int64        // when the last round or the last sleep ended
	sleeps  uint64       // the poller's
	sched   *share.Scheduler
	meter   share.Meter
	settled int64   // when the processor time was last charged
	last    *client // served last
	company int64   // until then, clients are taken to be in each other's way
	sparse  int64   // until then, one of them is taken to have a few requests now and then

	works   []*work // to be used
	batch   []*work // of the round at hand
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
		sched:    share.New(Costs),
		works:    make([]*work, abi.MaxDevBatch),
		batch:    make([]*work, 0, abi.MaxDevBatch),
		ops:      make([]Op, 0, abi.MaxDevBatch),
	}
	start := time.Now()
	s.clock = func() int64 { return int64(time.Since(start)) }
	for _, d := range disks {
		s.disks[d.Name] = d
	}
	for i := range s.works {
		s.works[i] = newWork()
	}
	return s
}

// newWork returns a work with room for a usual chain.
func newWork() *work {
	return &work{chain: ring.Chain{Readable: make([][]byte, 0, 8), Writable: make([][]byte, 0, 8)}}
}

// Watch makes Wait return ring.WakeWatch when fd is readable.
func (s *Server) Watch(fd int) { s.poller.Watch(fd) }

// Wait blocks until a client may have work or a watched descriptor is readable, or timeout has passed;
// negative means for ever. While a cap holds somebody back it returns now and then, so that the driver is seen to live.
func (s *Server) Wait(timeout time.Duration) (ring.Wake, error) {
	if at, ok := s.sched.NextAt(); ok {
		d := min(max(time.Duration(at-s.clock()), 0), heldWait)
		if timeout < 0 || d < timeout {
			timeout = d
		}
	}
	wake, err := s.poller.Wait(timeout)
	if n := s.poller.Sleeps(); n != s.sleeps {
		s.sleeps = n
		s.now = s.clock()
	}
	return wake, err
}

// Now returns the time of the round at hand, from an origin of the Server's own. It costs nothing.
func (s *Server) Now() time.Duration { return time.Duration(s.now) }

// Stats returns what waiting cost.
func (s *Server) Stats() ring.PollerStats { return s.poller.Stats() }

// Round takes what the clients offer, at most one batch, performs it and completes it. It returns the number
// of requests, or parts of one, in the batch. It does not allocate once its buffers have grown, unless a client dies.
func (s *Server) Round() int {
	s.collect()
	s.take()
	if len(s.batch) > 0 {
		s.step(StepTaken)
		if len(s.ops) > 0 {
			s.dev.Do(s.ops)
		}
		s.step(StepDone)
		for _, w := range s.batch {
			s.performed(w)
		}
	}
	s.publish() // before a flush, which may take long
	s.flush()
	s.publish()
	s.account()
	return len(s.batch)
}

// performed looks after a request of the batch whose operations are done.
func (s *Server) performed(w *work) {
	w.q.inRound = false
	if w.status == virtioblk.StatusOK {
		w.settle(s.ops)
	}
	if w.count > 0 {
		w.q.c.far = s.ops[w.first+w.count-1].Left
	}
	if w.unfinished() {
		return
	}
	w.parted = false
	if w.flush && w.status == virtioblk.StatusOK {
		s.park(w)
	} else {
		s.finish(w.q, &w.req, w.status)
	}
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
	q.use.Ops++
	q.use.Bytes += uint64(r.DataBytes)
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
