package daemon

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
)

// native reports whether the client is a native VM's, which cannot write what its driver says, nor the driver what it says.
func (c *client) native() bool { return len(c.att.Regions) > 0 && c.att.Regions[0].ReadOnly }

// read fills b from an address of the client. The memory is read and not mapped, so that a client which shrinks it harms nobody.
func (c *client) read(addr uint64, b []byte) bool {
	n := uint64(len(b))
	for _, r := range c.att.Regions {
		if addr < r.Base || r.Size < n || addr-r.Base > r.Size-n || r.FD < 0 {
			continue
		}
		if c.kinds[r.FD] != memoryFile {
			return false
		}
		got, err := unix.Pread(rawFD(c.files[r.FD]), b, int64(r.Offset+(addr-r.Base)))
		return err == nil && got == len(b)
	}
	return false
}

// evidence copies what stands in memory about queue i; false when it cannot be read, or too much goes on.
func (c *client) evidence(i int) (*ring.Evidence, bool) {
	q := &c.att.Queues[i]
	if q.Size == 0 || q.Size&(q.Size-1) != 0 || q.Size > ring.MaxSize {
		return nil, false
	}
	e := &ring.Evidence{Size: q.Size, Used: make([]byte, ring.UsedBytes(q.Size))}
	for range evidenceTries {
		if !c.read(q.Used, e.Used) {
			return nil, false
		}
		if e.Log = c.log(i); c.att.Log >= 0 && e.Log == nil {
			return nil, false
		}
		if used, ok := c.read16(q.Used + 2); !ok || used != e.UsedIdx() {
			continue
		}
		// The driver's own index last: it only grows, so that what is read of the device is not ahead of it.
		var ok bool
		e.Avail, ok = c.read16(q.Avail + 2)
		return e, ok
	}
	return nil, false
}

// evidenceOf is evidence against the present instance: what a former one has left in the used ring is not.
func (c *client) evidenceOf(i int) (*ring.Evidence, bool) {
	e, ok := c.evidence(i)
	if !ok {
		return nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if i < len(c.wild) {
		e.Pardon(c.wild[i])
	}
	return e, true
}

// noteWild takes note of what the used rings say wrongly while nobody serves them. Those of native clients were started anew for that; see mend.
func (c *client) noteWild() {
	if c.native() {
		return
	}
	wild := make([]map[int]uint32, len(c.att.Queues))
	for i := range wild {
		if e, ok := c.evidence(i); ok {
			wild[i] = e.WildHeads()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wild = wild
}

// evidenceTries bounds how often a queue that is at work is copied to get a copy that belongs together.
const evidenceTries = 4

// log copies the region of queue i of the in-flight log, which stands at the queue's index (vhost-user, Inflight I/O tracking); nil: there is none.
func (c *client) log(i int) []byte {
	q := &c.att.Queues[i]
	n := ring.InflightBytes(q.Size)
	at := uint64(q.Index) * n
	if c.att.Log < 0 || c.kinds[c.att.Log] != memoryFile || at+n > c.att.LogSize {
		return nil
	}
	b := make([]byte, n)
	if got, err := unix.Pread(rawFD(c.files[c.att.Log]), b, int64(at)); err != nil || got != len(b) {
		return nil
	}
	return b
}

// word reads one of the words of a native client's grant; see abi.WordEpoch.
func (c *client) word(at uint64) uint32 {
	var b [4]byte
	if !c.read(abi.RingsAt+at, b[:]) {
		return 0
	}
	return binary.LittleEndian.Uint32(b[:])
}

// complaints are what a client may say of its driver.
var complaints = map[uint32]string{
	abi.ComplaintIndex:  "the used index ran ahead of what it had offered",
	abi.ComplaintHead:   "a request was completed that was not outstanding",
	abi.ComplaintLength: "a completion claimed more than there was room for",
	abi.ComplaintStatus: "a request was completed without a status",
}

// complaint returns what a native client complains about, or "".
func (c *client) complaint() string {
	if !c.native() {
		return ""
	}
	for i := range c.att.Queues {
		if s := complaints[c.word(abi.WordComplaint(i))]; s != "" {
			return s
		}
	}
	return ""
}
