package program

import (
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/hv/state"
)

// mapState maps the driver's state region, if it has one.
func (h *Host) mapState() (err error) {
	for _, c := range h.Caps {
		if c.Kind == abi.CapState {
			h.State, err = guest.MapGrant(c.FD, 0, c.Size, true)
			return err
		}
	}
	return nil
}

// TookOver says what the program took over from its predecessor. refused counts what made no sense in the program's eyes.
func (h *Host) TookOver(t state.Taken, refused int, err error) {
	switch {
	case err != nil:
		h.Say("no state is kept: %v", err)
	case t.Foreign:
		h.Say("state: another version's, not taken over")
	case t.Items+t.Records > 0:
		h.Say("state: took over %d records, %d of them since the last checkpoint, %d refused", t.Items+t.Records, t.Records, refused)
	}
}
