package serve

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/console/logfile"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/logring"
)

// linger is how long the server rests after it has logged something before it looks again: a VM that prints line by line does not wake
// it for each of them. The ring holds what comes meanwhile.
const linger = 5 * time.Millisecond

// Bounds of one round for one client: pieces and bytes. A hostile ring can be made of very small pieces.
const (
	pieceBytes = 64 << 10
	roundSteps = 256
)

// Config says how the server waits.
type Config struct {
	Poll ring.PollerConfig // Poll and times; it never spins
	Now  func() time.Time
}

// Death tells of a client that is no longer served.
type Death struct {
	ID     uint64
	Reason string
}

// Server serves consoles. It is not safe for concurrent use.
type Server struct {
	Pieces, Bytes uint64       // taken from rings
	Deaths        []Death      // since the caller emptied it
	Step          func()       // for tests: called with a piece in hand
	poller        *ring.Poller //
	poll          pollFunc     //
	now           func() time.Time
	watched       []unix.PollFd
	clients       []*client
	buf           []byte
	busy          bool // the last round took something
}

type pollFunc = func(fds []unix.PollFd, timeout time.Duration) (int, error)

// New returns a server without clients.
func New(c Config) *Server {
	c.Poll.MaxSpin = -1
	s := &Server{poller: ring.NewPoller(c.Poll), poll: c.Poll.Poll, now: c.Now, buf: make([]byte, pieceBytes)}
	if s.now == nil {
		s.now = time.Now
	}
	if s.poll == nil {
		s.poll = func(fds []unix.PollFd, timeout time.Duration) (int, error) {
			return unix.Poll(fds, int(timeout.Milliseconds()))
		}
	}
	return s
}

// ErrAttached reports an attachment that there is already.
var ErrAttached = errors.New("it is attached already")

// Watch makes Wait return ring.WakeWatch while fd is readable.
func (s *Server) Watch(fd int) {
	s.poller.Watch(fd)
	s.watched = append(s.watched, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
}

// Attach adds a console: its ring, whose producer rings bell, and its log. Both stay the caller's. It goes on where the log says that an
// earlier server has stopped.
func (s *Server) Attach(id uint64, cfg LogConfig, ringMem, logMem []byte, bell ring.Doorbell) (err error) {
	if s.find(id) >= 0 {
		return ErrAttached
	}
	c := &client{id: id, limit: logring.NewLimiter(int64(cfg.Rate), int64(cfg.Burst)), mem: [][]byte{ringMem, logMem}}
	defer c.faults(&err)
	now := s.now()
	var pos uint64
	if c.log, pos, err = logfile.NewWriter(logMem, cfg.Run, now); err != nil {
		return err
	}
	if c.ring, err = logring.NewConsumer(ringMem, pos); err != nil {
		return err
	}
	s.clients = append(s.clients, c)
	s.poller.Add(c.ring, bell)
	return nil
}

// Detach ends a console when all that is in its ring is logged; how much that is, is bounded by the ring.
func (s *Server) Detach(id uint64) {
	i := s.find(id)
	if i < 0 {
		return
	}
	c := s.clients[i]
	err := func() (err error) {
		defer c.faults(&err)
		for left := c.ring.Size(); left > 0; {
			n, err := c.step(s.buf, s.now(), s.taken)
			if err != nil || n == 0 {
				break
			}
			s.count(n)
			left -= n
		}
		c.gap(s.now(), c.ring.Position())
		return nil
	}()
	if err != nil {
		s.Deaths = append(s.Deaths, Death{c.id, err.Error()})
	}
	s.drop(i)
}

func (s *Server) find(id uint64) int {
	return slices.IndexFunc(s.clients, func(c *client) bool { return c.id == id })
}

func (s *Server) drop(i int) {
	s.poller.Remove(s.clients[i].ring)
	s.clients = slices.Delete(s.clients, i, i+1)
}

// Wait implements program.Server.
func (s *Server) Wait(timeout time.Duration) (ring.Wake, error) {
	if s.busy {
		s.busy = false
		n, err := s.poll(s.watched, linger)
		for i := range s.watched {
			s.watched[i].Revents = 0
		}
		switch {
		case err == unix.EINTR:
		case err != nil:
			return ring.WakeTimeout, fmt.Errorf("poll: %w", err)
		case n > 0:
			return ring.WakeWatch, nil
		}
		return ring.WakeWork, nil
	}
	if slices.ContainsFunc(s.clients, (*client).owes) && (timeout < 0 || timeout > gapEvery) {
		timeout = gapEvery
	}
	return s.poller.Wait(timeout)
}

// Round implements program.Server: it logs what is in the rings, and returns how many pieces that were. More than half a ring at once is
// a sign to go on without a rest, unless it is dropped anyway.
func (s *Server) Round() (pieces int) {
	now := s.now()
	hurry := false
	for i := 0; i < len(s.clients); {
		c := s.clients[i]
		n, bytes, err := s.serve(c, now)
		pieces += n
		hurry = hurry || bytes > c.ring.Size()/2 && !c.limit.Closed()
		if err != nil {
			s.Deaths = append(s.Deaths, Death{c.id, err.Error()})
			s.drop(i)
			continue
		}
		i++
	}
	s.busy = pieces > 0 && !hurry
	return pieces
}

// serve logs what one ring holds, at most as much as one ring can.
func (s *Server) serve(c *client, now time.Time) (pieces, bytes int, err error) {
	defer c.faults(&err)
	for pieces < roundSteps && bytes < c.ring.Size() && c.ring.Pending() {
		n, err := c.step(s.buf, now, s.taken)
		if err != nil {
			return pieces, bytes, err
		}
		s.count(n)
		pieces++
		bytes += n
	}
	if c.owes() && now.Sub(c.since) >= gapEvery {
		c.gap(now, c.ring.Position())
	}
	return pieces, bytes, nil
}

func (s *Server) count(n int) {
	s.Pieces++
	s.Bytes += uint64(n)
}

func (s *Server) taken() {
	if s.Step != nil {
		s.Step()
	}
}

// faults, deferred, makes an error of a fault in the client's memory: a file that somebody has cut off, or a disk that is full or broken.
// Precondition: debug.SetPanicOnFault.
func (c *client) faults(err *error) {
	v := recover()
	if v == nil {
		return
	}
	e, ok := v.(runtime.Error)
	if f, known := v.(interface{ Addr() uintptr }); known {
		ok = inside(c.mem, f.Addr())
	} else if ok {
		ok = e.Error() == addressless
	}
	if !ok {
		panic(v)
	}
	*err = fmt.Errorf("its memory or its log cannot be used: %w", e)
}

// addressless is the Go runtime's error for a fault whose address it was not told, as engine kvm cannot tell it, or which is nearly nil. While a client is
// worked on there are no nil pointers but by a mistake of ours, which then costs one console and not all.
const addressless = "runtime error: invalid memory address or nil pointer dereference"
