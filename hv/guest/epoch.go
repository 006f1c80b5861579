package guest

import (
	"errors"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
)

// epoch is one queue's part in the recovery from a driver that broke the ring's rules: the client complains, and waits; the host
// replaces the driver, and changes the epoch; the client starts the ring anew and acknowledges; the next driver is attached. Its
// owner's lock guards it.
type epoch struct {
	words words
	queue int
	now   uint32 // in which the ring was started; a grant begins with 0
}

func newEpoch(m *Memory, queue int) epoch { return epoch{words: words{m.Rings}, queue: queue} }

// over reports whether the ring is to be started anew. It costs a load.
func (e *epoch) over() bool { return e.words.epoch() != e.now }

// begin starts drv anew; fill offers again what is outstanding. It ends with the acknowledgement.
func (e *epoch) begin(drv *ring.Driver, fill func()) {
	e.now = e.words.epoch()
	drv.Restart()
	fill()
	drv.Publish()
	e.words.complain(e.queue, 0)
	e.words.acknowledge(e.queue, e.now) // last: the next driver may come at once
}

// complain stops the use of drv until the epoch is over, because of err.
func (e *epoch) complain(drv *ring.Driver, err error) {
	what := abi.ComplaintHead
	switch {
	case errors.Is(err, ring.ErrPeerIndex):
		what = abi.ComplaintIndex
	case errors.Is(err, ring.ErrPeerLength):
		what = abi.ComplaintLength
	case errors.Is(err, errStatus):
		what = abi.ComplaintStatus
	}
	drv.Fail(err)
	e.words.complain(e.queue, what)
}

// errStatus reports a completion without a status.
var errStatus = errors.New("completion without a status")
