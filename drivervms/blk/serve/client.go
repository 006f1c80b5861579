package serve

import (
	"errors"
	"fmt"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// Client is one attachment: a client's memory and queues on one disk.
type Client struct {
	ID       uint64
	Name     string // for messages
	Disk     string
	ReadOnly bool   // refuses writes even if the disk takes them
	Features uint64 // negotiated virtio features
	Memory   *ring.Memory
	Queues   []Queue
	Share    share.Config // what it gets beside the others
}

// Queue is one queue of a Client.
type Queue struct {
	ring.Queue        // Features are taken from the Client
	LastAvail  uint16 // where to go on without a log
	Log        []byte // in-flight log of this queue, ring.InflightBytes(Size) long; nil: none
	Kick, Call ring.Doorbell
}

// client is a Client that is served.
type client struct {
	id     uint64
	name   string
	limits limits
	queues []*queue
	count  *Counters
	dead   bool

	share *share.Client
	next  int  // queue whose turn it is
	far   bool // the host had to be asked for its last operations
}

// queue is one queue that is served.
type queue struct {
	c       *client
	dev     *ring.Device
	call    ring.Doorbell
	touched bool // has completions to be published in this round

	part    *work // the request that is performed in parts; its parted says whether there is one
	inRound bool  // a part of it is in the batch at hand
	use     share.Use
}

// Pending implements ring.Source.
func (q *queue) Pending() bool { return (q.part.parted || q.dev.Pending()) && !q.c.share.Held() }

// Arm implements ring.Source. While a cap holds the client back its doorbell is of no use.
func (q *queue) Arm() bool { return q.c.share.Held() || !q.part.parted && q.dev.Arm() }

// Disarm implements ring.Source.
func (q *queue) Disarm() { q.dev.Disarm() }

// ErrAttached reports an attachment ID that is in use.
var ErrAttached = errors.New("attachment is already served")

// Attach starts to serve c: first what an earlier driver left in flight, then what is new. It rings every
// queue's call doorbell once, since an earlier driver may have died between completion and doorbell. The
// client's memory stays mapped until Detach has returned. Errors: ErrAttached; no such disk; a queue that
// lies outside the memory or whose log is corrupt, as ring.NewDevice says; what share.Config.Check says. After an error nothing is served.
func (s *Server) Attach(c Client) error {
	if s.clients[c.ID] != nil {
		return fmt.Errorf("%w: %d", ErrAttached, c.ID)
	}
	d, ok := s.disks[c.Disk]
	if !ok && !s.Refuse {
		return fmt.Errorf("no disk %q here", c.Disk)
	}
	if len(c.Queues) == 0 || len(c.Queues) > MaxQueues {
		return fmt.Errorf("%d queues, the limit is %d", len(c.Queues), MaxQueues)
	}
	cl := &client{id: c.ID, name: c.Name, count: s.countersOf(c.ID), limits: limits{
		sectors: d.Size / virtioblk.SectorSize, readOnly: d.ReadOnly || c.ReadOnly, fd: d.FD, refuse: s.Refuse,
		durable: c.Features&virtioblk.FeatureFlush == 0,
	}}
	copy(cl.limits.id[:], d.Name)
	for i, q := range c.Queues {
		q.Features = c.Features
		var log *ring.Inflight
		if q.Log != nil {
			var err error
			if log, err = ring.NewInflight(q.Log, q.Size); err != nil {
				return fmt.Errorf("queue %d: %w", i, err)
			}
		}
		dev, err := ring.NewDevice(c.Memory, ring.DeviceConfig{
			Queue: q.Queue, LastAvail: q.LastAvail, Log: log, MaxSegments: maxChain,
		})
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		cl.queues = append(cl.queues, &queue{c: cl, dev: dev, call: q.Call, part: newWork()})
	}
	var err error
	if cl.share, err = s.sched.Add(cl, c.Share); err != nil {
		return err
	}
	s.clients[c.ID] = cl
	for i, q := range cl.queues {
		s.queues = append(s.queues, q)
		s.poller.Add(q, c.Queues[i].Kick)
		if err := q.call.Ring(); err != nil {
			s.kill(cl, err)
			break
		}
	}
	return nil
}

// maxChain bounds a chain: the data of the largest request, header, status, and room to spare.
const maxChain = abi.MaxDevSegs + 64

// MaxQueues bounds the queues of one attachment.
const MaxQueues = 64

// SetShare changes what an attachment gets beside the others. Errors: ErrUnknown; what share.Config.Check says.
func (s *Server) SetShare(id uint64, cfg share.Config) error {
	c := s.clients[id]
	if c == nil {
		return ErrUnknown
	}
	if c.dead {
		return cfg.Check()
	}
	return s.sched.Set(c.share, cfg, s.now)
}

// ErrUnknown reports an attachment that is not served.
var ErrUnknown = errors.New("there is no such attachment")

// Detach ends the service of the attachment. It completes what is performed in parts and what waits for a flush; nothing else is in
// flight between two rounds. It returns the index of each queue's next request, for a successor's LastAvail. Unknown IDs are no error:
// the attachment is not served, as wished.
func (s *Server) Detach(id uint64) (lastAvail []uint16) {
	c := s.clients[id]
	if c == nil {
		return nil
	}
	s.finishParts(c)
	s.drain()
	for _, q := range c.queues {
		lastAvail = append(lastAvail, q.dev.LastAvail())
	}
	s.drop(c)
	delete(s.clients, id)
	s.account() // what has just been finished
	for _, q := range c.queues {
		s.meter.Forget(&q.use.Account)
	}
	return lastAvail
}

// kill stops serving c, whose ring broke a rule, until it is detached.
func (s *Server) kill(c *client, why error) {
	if c.dead {
		return
	}
	c.dead = true
	s.drop(c)
	s.Deaths = append(s.Deaths, Death{ID: c.id, Reason: fmt.Sprintf("%s: %v", c.name, why)})
}

// drop takes c's queues out of the rounds.
func (s *Server) drop(c *client) {
	kept := make([]*queue, 0, len(s.queues)) // a new slice: a round may be going over the old one
	for _, q := range s.queues {
		if q.c != c {
			kept = append(kept, q)
		}
	}
	s.queues = kept
	s.sched.Remove(c.share)
	for _, q := range c.queues {
		s.poller.Remove(q)
	}
}
