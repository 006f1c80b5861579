package serve

import (
	"time"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/ring/virtioblk"
)

// Counters counts what one attachment had done, failed requests included. It holds nothing but words; see TakeOver.
type Counters struct {
	Reads, ReadBytes   uint64
	Writes, WriteBytes uint64
	Flushes            uint64
	Discards           uint64 // and write-zeroes
	Errors             uint64 // requests that were answered with an error
}

// count counts a request that is answered with status.
func (c *Counters) count(r *virtioblk.Request, status byte) {
	switch r.Type {
	case virtioblk.TypeIn:
		c.Reads++
		c.ReadBytes += uint64(r.DataBytes)
	case virtioblk.TypeOut:
		c.Writes++
		c.WriteBytes += uint64(r.DataBytes)
	case virtioblk.TypeFlush:
		c.Flushes++
	case virtioblk.TypeDiscard, virtioblk.TypeWriteZeroes:
		c.Discards++
	}
	if status != virtioblk.StatusOK {
		c.Errors++
	}
}

// Map returns the counters by name.
func (c *Counters) Map() map[string]uint64 {
	return map[string]uint64{"reads": c.Reads, "readBytes": c.ReadBytes, "writes": c.Writes, "writeBytes": c.WriteBytes,
		"flushes": c.Flushes, "discards": c.Discards, "errors": c.Errors}
}

// Counters returns what the attachment counted, and false when there is none.
func (s *Server) Counters(id uint64) (Counters, bool) {
	c := s.clients[id]
	if c == nil {
		return Counters{}, false
	}
	return *c.count, true
}

// Uses returns what each ring of the attachment had done, and charges what was used until now before.
func (s *Server) Uses(id uint64) (list []share.Use) {
	s.settle()
	if c := s.clients[id]; c != nil {
		for _, q := range c.queues {
			list = append(list, q.use)
		}
	}
	return list
}

// Own returns the processor time that is charged to nobody.
func (s *Server) Own() time.Duration {
	s.settle()
	return s.meter.Own
}
