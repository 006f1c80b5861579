package vswitch

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/ring"
)

// Config describes a Switch.
type Config struct {
	Uplink Uplink            // nil: none
	Poll   ring.PollerConfig // bounds of the switch's one worker
	Refuse bool              // drop every frame
	Clock  func() int64      // monotonic, ns; nil: the system's
	Wall   func() int64      // Unix time, ns, for what outlives the switch; nil: the system's
}

// Switch joins any number of ports and an uplink. It belongs to one goroutine.
type Switch struct {
	// Deaths holds the clients that broke their rings' rules since the owner last emptied it.
	Deaths []Death

	// Packets and Bytes count what was delivered. Served counts requests to the services, each of which leaves some
	// KiB for the collector.
	Packets, Bytes, Served uint64

	// CPU returns the processor time that the driver has used in all, to be charged to the clients; nil: nothing is charged.
	CPU func() time.Duration

	// Step, when not nil, is called between the steps of a round; tests crash there.
	Step func(Step)

	ports   map[uint64]*port
	tenants map[uint16]*tenant
	macs    map[uint64]*port // configured addresses of all tenants
	addrs   map[uint32]*port
	addrs6  map[[16]byte]*port
	table   table
	tx      []*txQueue
	held    int // frames that wait for buffers
	up      *outlet
	pending pendingQueries

	rxTouched []*rxQueue // with frames to be published
	txTouched []*txQueue // with heads to be given back

	refuse bool
	poller *ring.Poller
	clock  func() int64
	wall   func() int64
	now    int64 // ns, at the start of the round

	memory memory

	sched   *share.Scheduler
	meter   share.Meter
	sleeps  uint64        // the poller's, when the round began
	settled int64         // when the processor time was last charged
	last    *share.Client // served last
	company int64         // until then, clients are taken to be in each other's way
	sparse  int64         // until then, one of them is taken to send a few frames now and then
	inbound bool          // the frame at hand came from the uplink

	// Of the frame at hand.
	head    [headBytes]byte
	rest    [][]byte
	piece   [][]byte
	reply   frame
	scratch [replyBytes]byte
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
	StepTaken     Step = iota // a frame was taken, nothing was done with it
	StepForwarded             // frames are written, nothing of them is published
	StepReceived              // receivers see the frames, senders do not have their buffers back
	StepPublished             // a queue is published, its doorbell is not rung
)

// New returns a switch without ports.
func New(c Config) *Switch {
	s := &Switch{
		ports: map[uint64]*port{}, tenants: map[uint16]*tenant{}, macs: map[uint64]*port{}, addrs: map[uint32]*port{},
		addrs6: map[[16]byte]*port{},
		table:  table{m: map[uint64]*entry{}}, clock: c.Clock, wall: c.Wall, refuse: c.Refuse,
		memory: newMemory(), sched: share.New(Costs),
	}
	if s.clock == nil {
		start := time.Now()
		s.clock = func() int64 { return int64(time.Since(start)) }
	}
	if s.wall == nil {
		s.wall = func() int64 { return time.Now().UnixNano() }
	}
	s.now = s.clock()
	if c.Uplink != nil {
		s.up = newOutlet(s, c.Uplink)
		s.up.share, _ = s.sched.Add(nil, share.Config{}) // the zero Config is valid
		wait := c.Poll.Poll
		if wait == nil {
			wait = s.up.hostPoll
		}
		c.Poll.Poll = func(fds []unix.PollFd, timeout time.Duration) (int, error) {
			n, err := wait(fds, timeout)
			s.up.look(fds)
			return n, err
		}
	}
	s.poller = ring.NewPoller(c.Poll)
	return s
}

// Watch makes Wait return ring.WakeWatch when fd is readable.
func (s *Switch) Watch(fd int) {
	s.poller.Watch(fd)
	if s.up != nil {
		s.up.watched = append(s.up.watched, fd)
	}
}

// Wait blocks until a client or the uplink may have work, a watched descriptor is readable, a frame has waited long
// enough for its receiver, or timeout has passed; negative means for ever. While a cap holds somebody back it returns now and then, so that the
// driver is seen to live.
func (s *Switch) Wait(timeout time.Duration) (ring.Wake, error) {
	if s.held > 0 {
		if d := time.Duration(s.earliest() - s.clock()); timeout < 0 || d < timeout {
			timeout = max(d, 0)
		}
	}
	if at, ok := s.sched.NextAt(); ok {
		d := min(max(time.Duration(at-s.clock()), 0), heldWait)
		if timeout < 0 || d < timeout {
			timeout = d
		}
	}
	return s.poller.Wait(timeout)
}

// earliest returns the time at which the first hold ends.
func (s *Switch) earliest() int64 {
	t := s.now + holdFor
	for _, q := range s.tx {
		if q.on != nil {
			t = min(t, q.until)
		}
	}
	return t
}

// Stats returns what waiting cost.
func (s *Switch) Stats() ring.PollerStats { return s.poller.Stats() }

// Round takes what the clients and the uplink offer, as much as a round may hold, and delivers it. It returns the number of
// frames taken. It does not allocate once its buffers have grown, unless a client dies, learns, or asks a service.
func (s *Switch) Round() int {
	s.account()
	n := s.round()
	if s.up != nil {
		s.up.flush()
	}
	s.show()
	return n
}

// show publishes the frames written so far.
func (s *Switch) show() {
	s.step(StepForwarded)
	s.publish()
}

// settle counts a frame that was not delivered: at the receiver, if it is its fault and there is one.
func (s *Switch) settle(from, to *port, r Reason) {
	switch {
	case r == Delivered:
	case r >= DropRxFull && to != nil:
		to.count.Drops[r]++
	default:
		from.count.Drops[r]++
	}
}

// publish shows frames to their receivers, then gives buffers back to senders, and rings those that asked for it.
func (s *Switch) publish() {
	for _, q := range s.rxTouched {
		q.touched = false
		if !q.p.dead && q.dev.Publish() {
			s.step(StepPublished)
			s.poller.Ring(q.call)
		}
	}
	clear(s.rxTouched)
	s.rxTouched = s.rxTouched[:0]
	if len(s.txTouched) == 0 {
		return
	}
	s.step(StepReceived)
	for _, q := range s.txTouched {
		q.touched = false
		if q.p.dead {
			continue
		}
		for _, h := range q.done {
			q.dev.Push(h, 0)
		}
		q.done = q.done[:0]
		if q.dev.Publish() {
			s.step(StepPublished)
			s.poller.Ring(q.call)
		}
	}
	clear(s.txTouched)
	s.txTouched = s.txTouched[:0]
}

func (s *Switch) moved(n uint64) {
	s.Packets++
	s.Bytes += n
}

func (s *Switch) step(p Step) {
	if s.Step != nil {
		s.Step(p)
	}
}

// inject delivers a frame of the switch's own to p.
func (s *Switch) inject(p *port, pair int, b []byte) {
	if r := s.reply.set(b); r != Delivered {
		panic("vswitch: own frame is malformed: " + r.String())
	}
	if p.dead {
		return
	}
	if r := s.send(&s.reply, p.rx[pair%len(p.rx)]); r != Delivered {
		p.count.Drops[r]++
	}
}
