package serve

import "time"

// settleEvery is how often processor time is charged, in ns, while there is work. It costs a call of the host's.
const settleEvery = int64(250 * time.Millisecond)

// account ends a round: the time since the last one, or since the driver woke up, was spent for those who had something in it, as it cost.
func (s *Server) account() {
	before := s.now
	s.now = s.clock()
	if len(s.served) == 0 {
		return
	}
	total := int64(0)
	for _, q := range s.served {
		total += q.cost
	}
	for _, q := range s.served {
		if spent := s.now - before; total == q.cost {
			s.meter.Spend(&q.use.Account, spent)
		} else {
			s.meter.Spend(&q.use.Account, int64(float64(spent)*float64(q.cost)/float64(total)))
		}
		q.cost, q.inRound = 0, false
	}
	s.served = s.served[:0]
	if s.now-s.settled > settleEvery {
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
