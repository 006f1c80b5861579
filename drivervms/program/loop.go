package program

import (
	"errors"
	"strings"
	"time"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

// Server is what serves the clients.
type Server interface {
	// Wait returns when a ring has something, or the host; see ring.Poller.
	Wait(timeout time.Duration) (ring.Wake, error)
	// Round does what there is to do, and returns how much that was.
	Round() int
}

// Loop serves for ever. handle does what the host asks for; after is called at the end of each round. Errors: the control channel is gone,
// waiting fails, those of handle.
func (h *Host) Loop(s Server, handle func(abi.Message) error, after func()) error {
	for {
		wake, err := s.Wait(-1)
		if err != nil {
			return err
		}
		if wake == ring.WakeWatch {
			m, err := h.Channel.Receive()
			if errors.Is(err, guest.ErrChannelClosed) {
				return err
			}
			if err != nil {
				h.Say("%v", err)
				continue
			}
			if err := handle(m); err != nil {
				return err
			}
		}
		s.Round()
		h.tellLies()
		after()
	}
}

// Served writes the status page at the end of a round: the heartbeat, and what has been served in all.
func (h *Host) Served(requests, bytes uint64) {
	h.Status.Beat()
	if requests != h.requests {
		h.Status.Count(requests-h.requests, bytes-h.bytes)
		h.requests, h.bytes = requests, bytes
	}
}

// Answer answers a question whose answer is an error or none.
func (h *Host) Answer(question abi.Message, err error) error {
	answer := abi.Message{Type: question.Type, ID: question.ID}
	if err != nil {
		answer.Text = err.Error()
	}
	return h.Channel.Send(answer)
}

// Dead tells the host that the driver no longer serves an attachment, and why.
func (h *Host) Dead(id uint64, reason string) {
	if err := h.Channel.Send(abi.Message{Type: abi.MsgDead, ID: id, Text: reason}); err != nil {
		h.Say("%v", err)
	}
}

// Inject makes the program misbehave as the host asks. arm has it do so with requests in hand, where the damage is greatest; where a
// round has none, it happens here. clients are whom a lie is told to.
func (h *Host) Inject(how string, s Server, clients map[uint64]*Mapping, arm func(misbehave func())) {
	if strings.HasPrefix(how, liePrefix) {
		h.lieFrom(how, clients)
		return
	}
	switch how {
	case "stall":
		arm(h.stall)
		return // with the next request in hand
	case "fault", "hang", "deadlock", "memory":
	default:
		return
	}
	h.Say("told to misbehave: %s", how)
	arm(func() { Misbehave(how, h.Status.Beat) })
	if s.Round() == 0 {
		Misbehave(how, h.Status.Beat)
	}
}

// stall beats for ever and does nothing else.
func (h *Host) stall() {
	for {
		h.Status.Beat()
		time.Sleep(time.Millisecond)
	}
}
