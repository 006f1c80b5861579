package serve

import "time"

// settleEvery is how often processor time is charged, in ns, while there is work. It costs a call of the host's.
const settleEvery = int64(250 * time.Millisecond)

// account ends a round: the time since the last one, or since the driver woke up, was spent for those who had something in it, as it cost.
func (s *Server) account() {
	before := s.now
	s.now = s.clock()
	if s.meter.Round(s.now-before) && s.now-s.settled > settleEvery {
		s.settle()
	}
}

// settle charges the processor time used until now.
func (s *Server) settle() {
	s.settled = s.now
	if s.CPU != nil {
		s.meter.Settle(s.CPU())
	}
}
