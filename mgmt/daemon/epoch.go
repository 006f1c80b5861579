package daemon

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
)

// How long a client may take to start its rings anew.
const (
	// epochPatience is how long a driver that comes up waits for its clients to do it, all together.
	epochPatience = 50 * time.Millisecond
	// epochPause and epochLongPause bound the time between two looks: a client may do it when its guest next asks for something.
	epochPause     = 200 * time.Microsecond
	epochLongPause = 5 * time.Millisecond
)

// errAside reports a client that is to start its rings anew before it can be served.
var errAside = errors.New("the client has not yet started its rings anew")

// broken returns why no driver can go on with the client's rings as they stand, or nil. Nobody serves it.
func (c *client) broken() error {
	if what := c.complaint(); what != "" {
		return errors.New("the client complains: " + what)
	}
	for i := range c.att.Queues {
		e, ok := c.evidence(i)
		if !ok {
			continue // the driver will say so
		}
		if err := ring.Recoverable(e); err != nil {
			return err
		}
	}
	return nil
}

// awaited reports whether the client has to start a ring anew.
func (c *client) awaited() bool {
	if !c.native() {
		return false
	}
	epoch := c.word(abi.WordEpoch)
	for i := range c.att.Queues {
		if c.word(abi.WordAck(i)) != epoch {
			return true
		}
	}
	return false
}

// beginEpoch has a native client start its rings anew. Precondition: nobody serves it. Errors: its memory cannot be written.
func (c *client) beginEpoch() error {
	if !c.native() {
		return errors.New("the rings of a foreign client cannot be started anew")
	}
	if !c.awaited() {
		if err := c.setWord(abi.WordEpoch, c.word(abi.WordEpoch)+1); err != nil {
			return err
		}
	}
	c.call()
	return nil
}

// sweep clears what former drivers have written of a client that has started its rings anew: used rings, but for the index from which they
// go on, and the in-flight log. Precondition: nobody serves it. Errors: its memory cannot be written.
func (c *client) sweep() error {
	zero := func(fd int, at int64, n uint64) error {
		_, err := unix.Pwrite(rawFD(c.files[fd]), make([]byte, n), at)
		return err
	}
	r := c.att.Regions[1]
	for i := range c.att.Queues {
		q := &c.att.Queues[i]
		at := int64(r.Offset + q.Used - r.Base)
		if err := zero(r.FD, at, 2); err != nil {
			return fmt.Errorf("used ring of client %s: %w", c.att.Client, err)
		}
		if err := zero(r.FD, at+4, uint64(ring.UsedBytes(q.Size))-4); err != nil {
			return fmt.Errorf("used ring of client %s: %w", c.att.Client, err)
		}
	}
	if c.att.Log >= 0 {
		if err := zero(c.att.Log, 0, c.att.LogSize); err != nil {
			return fmt.Errorf("in-flight log of client %s: %w", c.att.Client, err)
		}
	}
	return nil
}

// setWord writes one of the words of a native client's grant.
func (c *client) setWord(at uint64, v uint32) error {
	r := c.att.Regions[0]
	f, err := hv.ForWriting(c.files[r.FD])
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(binary.LittleEndian.AppendUint32(nil, v), int64(r.Offset+abi.RingsAt-r.Base+at)); err != nil {
		return fmt.Errorf("epoch of client %s: %w", c.att.Client, err)
	}
	return nil
}

// mend prepares a client for its next driver. Errors: errAside; its memory cannot be written. Nobody serves it.
func (c *client) mend() error {
	if !c.native() {
		return nil
	}
	if c.awaited() {
		return errAside
	}
	epoch := c.word(abi.WordEpoch)
	if c.word(abi.WordSwept) == epoch {
		return nil
	}
	if err := c.sweep(); err != nil {
		return err
	}
	return c.setWord(abi.WordSwept, epoch)
}

// renew has a client that inst serves start its rings anew.
func (dr *driver) renew(inst *driverInstance, c *client) {
	c.mu.Lock()
	c.on = nil
	c.mu.Unlock()
	if err := inst.detach(c.att.ID); err != nil {
		dr.d.log.Warn("detach", "driver", dr.name(), "attachment", c.att.ID, "error", err)
		return // the instance is gone, or about to be; its successor does it
	}
	if err := c.beginEpoch(); err != nil {
		dr.d.log.Error("rings cannot be started anew", "driver", dr.name(), "client", c.att.Client, "error", err)
		return
	}
	dr.attachLater(inst, c)
}

// breakEpochs has those native clients of the driver start their rings anew whose rings are broken, or whose last driver lied: what
// else it did nobody knows. inst serves none of them yet, but for those that it did when it was adopted.
func (dr *driver) breakEpochs(inst *driverInstance) {
	dr.mu.Lock()
	list := dr.clientList()
	dr.mu.Unlock()
	for _, c := range list {
		c.mu.Lock()
		served, lied := c.on == inst, c.lied
		c.lied = false
		c.mu.Unlock()
		if served || !c.native() || c.awaited() {
			continue
		}
		var why error
		if lied {
			why = errors.New("its last driver broke the rules of a ring")
		} else if why = c.broken(); why == nil {
			continue
		}
		dr.d.log.Warn("ring started anew", "driver", dr.name(), "client", c.att.Client, "disk", c.att.Disk, "why", why)
		if err := c.beginEpoch(); err != nil {
			dr.d.log.Error("rings cannot be started anew", "driver", dr.name(), "client", c.att.Client, "error", err)
		}
	}
}

// awaitEpochs waits a little for clients to start their rings anew, and returns those that have and those that have not.
func awaitEpochs(list []*client, quit <-chan struct{}) (done, aside []*client) {
	limit := time.Now().Add(epochPatience)
	for _, c := range list {
		for c.awaited() && time.Now().Before(limit) {
			select {
			case <-quit:
				return done, list
			case <-time.After(epochPause):
			}
		}
		if c.awaited() {
			aside = append(aside, c)
		} else {
			done = append(done, c)
		}
	}
	return done, aside
}

// attachLater attaches a client as soon as it has started its rings anew, unless inst is gone by then.
func (dr *driver) attachLater(inst *driverInstance, c *client) {
	dr.d.background.Go(func() {
		pause := epochPause
		for c.awaited() {
			select {
			case <-dr.d.closing:
				return
			case <-inst.ended:
				return
			case <-time.After(pause):
			}
			if c.leaving() {
				return
			}
			pause = min(2*pause, epochLongPause)
		}
		if err := inst.attach(c, fromMs(dr.config().HeartbeatMs)); err != nil {
			if !errors.Is(err, errLeft) && !inst.gone() {
				dr.d.log.Error("attach", "driver", dr.name(), "client", c.att.Client, "disk", c.att.Disk, "error", err)
			}
			return
		}
		c.call()
		c.kick()
	})
}
