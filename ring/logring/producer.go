package logring

import (
	"sync/atomic"
	"time"
)

// markEvery is the least time between two time marks: together they then reach back for 192 ms at least, and as long as there is output.
const markEvery = time.Millisecond

// Producer writes the stream. It is not safe for concurrent use.
type Producer struct {
	mem, data          []byte
	head               uint64
	puts               uint16
	marked             uint64 // time marks made
	last               int64  // time of the newest
	avail, sleep       *atomic.Uint32
	claim, headW, mark *atomic.Uint64
}

// NewProducer returns the producer of a ring in mem, which is zeroed. Errors: ErrMemory.
func NewProducer(mem []byte) (*Producer, error) {
	if err := check(mem); err != nil {
		return nil, err
	}
	return &Producer{mem: mem, data: mem[headerBytes:], avail: word32(mem, AvailOffset), sleep: word32(mem, sleepOffset),
		claim: word64(mem, claimOffset), headW: word64(mem, headOffset), mark: word64(mem, marksOffset)}, nil
}

// Put appends b to the stream, and reports whether the consumer's doorbell is to be rung. It neither blocks nor allocates, and takes
// the time of copying what of b fits the ring.
func (p *Producer) Put(b []byte, now time.Time) (ring bool) {
	if len(b) == 0 {
		return false
	}
	if t := now.UnixNano(); p.marked == 0 || t-p.last >= int64(markEvery) {
		at := tableOffset + int(p.marked%marks)*16
		word64(p.mem, at).Store(p.head)
		word64(p.mem, at+8).Store(uint64(t))
		p.marked++
		p.last = t
		p.mark.Store(p.marked)
	}
	next := p.head + uint64(len(b))
	// What is about to be overwritten is given up before the first byte is; pairs with the load of claim in Consumer.Take.
	p.claim.Store(next)
	if skip := len(b) - len(p.data); skip > 0 {
		p.head += uint64(skip)
		b = b[skip:]
	}
	at := int(p.head % uint64(len(p.data)))
	n := copy(p.data[at:], b)
	copy(p.data, b[n:])
	p.head = next
	p.puts++
	p.avail.Store(uint32(p.puts) << 16)
	// Before the look at sleep; pairs with Consumer.Arm, which stores sleep and then looks at head.
	p.headW.Store(next)
	return p.sleep.Load() != 0 && p.sleep.Swap(0) != 0
}
