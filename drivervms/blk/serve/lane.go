package serve

import (
	"sync/atomic"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// lane flushes devices beside the Server, so that one client's flush does not hold up the others' requests. It
// does one batch of flushes at a time. To the Server's poller it is a ring.Source.
type lane struct {
	jobs     chan []Op
	finished chan struct{} // one token for each batch that is done
	done     atomic.Bool   // a token is there, or about to be
	armed    atomic.Bool   // bell is to be rung
	bell     ring.Doorbell
}

// newLane starts a lane on dev; close ends it.
func newLane(dev Device) (*lane, error) {
	bell, err := ring.NewDoorbell()
	if err != nil {
		return nil, err
	}
	l := &lane{jobs: make(chan []Op, 1), finished: make(chan struct{}, 1), bell: bell}
	go func() {
		for ops := range l.jobs {
			dev.Do(ops)
			// Pairs with Arm: either it sees done, or we see armed.
			l.done.Store(true)
			l.finished <- struct{}{}
			if l.armed.Load() {
				l.bell.Ring() // cannot fail: the counter starts at 0
			}
		}
	}()
	return l, nil
}

func (l *lane) close() {
	close(l.jobs)
	l.bell.Close()
}

// Pending implements ring.Source.
func (l *lane) Pending() bool { return l.done.Load() }

// Arm implements ring.Source.
func (l *lane) Arm() (maySleep bool) {
	l.armed.Store(true)
	return !l.done.Load()
}

// Disarm implements ring.Source.
func (l *lane) Disarm() { l.armed.Store(false) }

// take waits for the batch in progress.
func (l *lane) take() {
	<-l.finished
	l.done.Store(false)
}

// parked is a request that is done but for a flush of its device.
type parked struct {
	q   *queue
	req virtioblk.Request
}

// park keeps w's request until its device was flushed.
func (s *Server) park(w *work) {
	p := parked{q: w.q, req: w.req}
	p.req.Data = nil // belongs to the chain, which is used again; the status byte does not
	s.parked = append(s.parked, p)
}

// flush starts to flush what the parked requests wait for, unless a flush is in progress: they were parked
// after it began, and go with the next one. While there is one client only there is nobody to hold up, and
// the lane's two thread switches are spared.
func (s *Server) flush() {
	if len(s.flying) > 0 || len(s.parked) == 0 {
		return
	}
	s.flying, s.parked = s.parked, s.flying[:0]
	s.flushes = s.flushes[:0]
	for i := range s.flying {
		s.addFlush(s.flying[i].q.c.limits.fd)
	}
	if len(s.clients) > 1 && s.lane == nil {
		if l, err := newLane(s.dev); err == nil {
			s.lane = l
			s.poller.Add(l, l.bell)
		}
	}
	if len(s.clients) > 1 && s.lane != nil {
		s.inLane = true
		s.lane.jobs <- s.flushes
		return
	}
	s.poller.Flush() // the flush may take long
	s.dev.Do(s.flushes)
	s.land()
}

// addFlush adds a flush of fd to the batch, once.
func (s *Server) addFlush(fd int32) {
	for i := range s.flushes {
		if s.flushes[i].FD == fd {
			return
		}
	}
	s.flushes = append(s.flushes, Op{FD: fd, Kind: abi.DevFlush})
}

// collect completes the requests whose flush the lane has done.
func (s *Server) collect() {
	if s.inLane && s.lane.Pending() {
		s.lane.take()
		s.inLane = false
		s.land()
	}
}

// land completes the requests whose flush is done.
func (s *Server) land() {
	s.step(StepFlushed)
	for i := range s.flying {
		p := &s.flying[i]
		status := virtioblk.StatusOK
		for k := range s.flushes {
			if s.flushes[k].FD == p.q.c.limits.fd && s.flushes[k].Result < 0 {
				status = virtioblk.StatusIOErr
			}
		}
		s.finish(p.q, &p.req, status)
	}
	clear(s.flying)
	s.flying = s.flying[:0]
}

// drain completes everything that waits for a flush.
func (s *Server) drain() {
	for len(s.flying) > 0 || len(s.parked) > 0 {
		if s.inLane {
			s.lane.take()
			s.inLane = false
			s.land()
		}
		s.flush()
	}
	s.publish()
	s.poller.Flush() // the caller may be about to close a doorbell
}
