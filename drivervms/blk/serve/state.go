package serve

import (
	"errors"

	"github.com/grailos/grail/hv/state"
)

// StateVersion is the version of what a Server keeps in its state region: it changes with Counters.
const StateVersion = 1

// TakeOver makes the region the Server's own. All that it keeps there is its clients' counters, which go on where a predecessor's ended.
// Precondition: nobody else writes to the region any more. Errors: there are clients already; those of state.Open.
func (s *Server) TakeOver(region []byte) (state.Taken, error) {
	if len(s.clients) > 0 {
		return state.Taken{}, errors.New("a server with clients cannot take over another's state")
	}
	log, taken, err := state.Open(region, StateVersion, func(uint16, []byte) {})
	if err != nil {
		return taken, err
	}
	s.counters = state.NewCells[Counters](log.Words())
	log.Start(func(state.Put) {})
	return taken, nil
}

// countersOf returns the counters of an attachment.
func (s *Server) countersOf(id uint64) *Counters {
	return s.counters.Of(id, func(id uint64) bool { return s.clients[id] != nil })
}
