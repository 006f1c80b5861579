package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/grailos/grail/ring/virtioblk"
)

// Job is a load.
type Job struct {
	Write  bool
	Random bool   // offsets; otherwise one block after the other, from the start again at the end
	Block  uint32 // bytes of a request, a multiple of 512
	Depth  int    // requests outstanding
	Span   uint64 // bytes of the disk that are used, from its start; 0: all
	Seed   uint64 // of the offsets

	Time time.Duration // how long it runs; 0: until Stop
	Stop *atomic.Bool  // ends the run when it becomes true; may be nil
	// From is the time, in Unix nanoseconds, before which no stall is looked for; it may be set while the
	// job runs. nil: from the start.
	From *atomic.Int64
	// Rest is how long to sleep between two looks at the ring, instead of polling: for a deep load that is to leave the processor to others.
	Rest time.Duration
	// Latencies, when not nil, takes the time of each request; Depth is 1.
	Latencies *Latencies
	// Check compares what is read with Pattern. It costs a load a request.
	Check bool
}

// Result is what a Job did.
type Result struct {
	Requests uint64
	Bytes    uint64
	Elapsed  time.Duration
	Kicks    uint64 // times that the back end wanted its doorbell rung
	// The longest time without a completion that ended after Job.From, which began at StallAt.
	Stall   time.Duration
	StallAt time.Time
}

// PerSecond returns the requests a second.
func (r Result) PerSecond() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// MiBPerSecond returns the data rate.
func (r Result) MiBPerSecond() float64 { return float64(r.Bytes) / (1 << 20) / r.Elapsed.Seconds() }

// ErrStalled reports that the back end completed nothing for long.
var ErrStalled = errors.New("load: no completion")

// patience is how long the client waits for any completion.
const patience = 20 * time.Second

// lookEvery is how many empty looks at the ring there are between two at the clock.
const lookEvery = 64

// Run puts the load on the queue, and returns when all its requests are completed. Errors: ErrStalled; a request that
// failed; data that differ; what the back end did wrong.
func (c *Client) Run(j Job) (Result, error) {
	if j.Span == 0 || j.Span > c.Size {
		j.Span = c.Size
	}
	blocks := j.Span / uint64(j.Block)
	if j.Depth < 1 || j.Depth > c.slots || j.Block > c.slotLen || j.Block%virtioblk.SectorSize != 0 || blocks == 0 {
		return Result{}, fmt.Errorf("load: %d requests of %d bytes on %d bytes, with %d slots of %d bytes", j.Depth, j.Block, j.Span, c.slots, c.slotLen)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	rnd := rand.New(rand.NewPCG(j.Seed, 0))
	typ := virtioblk.TypeIn
	if j.Write {
		typ = virtioblk.TypeOut
	}
	var next uint64
	at := make([]uint64, j.Depth) // offsets of the slots' requests
	submit := func(i int) error {
		if j.Random {
			at[i] = rnd.Uint64N(blocks) * uint64(j.Block)
		} else {
			at[i] = next * uint64(j.Block)
			next = (next + 1) % blocks
		}
		if j.Write {
			stamp(c.slot(i)[:j.Block], at[i])
		}
		return c.submit(i, typ, at[i], j.Block)
	}
	var r Result
	for i := range j.Depth {
		if err := submit(i); err != nil {
			return r, err
		}
	}
	begin := time.Now()
	last := begin
	ending := false
	for outstanding := j.Depth; ; {
		var asked time.Time
		if j.Latencies != nil {
			asked = time.Now()
		}
		if c.drv.Publish() {
			r.Kicks++
			if err := c.kick.Ring(); err != nil {
				return r, err
			}
		}
		n, now, err := c.wait(last, j.Rest)
		if err != nil {
			return r, err
		}
		if j.Latencies != nil {
			j.Latencies.add(now.Sub(asked))
		}
		if gap := now.Sub(last); gap > r.Stall && (j.From == nil || j.From.Load() <= now.UnixNano()) {
			r.Stall, r.StallAt = gap, last
		}
		last = now
		ending = ending || j.Time > 0 && now.Sub(begin) >= j.Time || j.Stop != nil && j.Stop.Load()
		for _, u := range c.done[:n] {
			i := int(u.Token)
			if s := c.status(i); s != virtioblk.StatusOK {
				return r, fmt.Errorf("load: request at %d ended with status %d", at[i], s)
			}
			if j.Check && !j.Write && !stamped(c.slot(i)[:j.Block], at[i]) {
				return r, fmt.Errorf("load: wrong data at %d", at[i])
			}
			r.Requests++
			r.Bytes += uint64(j.Block)
			if ending {
				outstanding--
				continue
			}
			if err := submit(i); err != nil {
				return r, err
			}
		}
		if outstanding == 0 {
			r.Elapsed = last.Sub(begin)
			return r, nil
		}
	}
}

// wait polls until something is completed, and takes the time then. last is when something was completed before.
func (c *Client) wait(last time.Time, rest time.Duration) (n int, now time.Time, err error) {
	for spins := 0; ; spins++ {
		if n, err = c.drv.Used(c.done); n > 0 || err != nil {
			return n, time.Now(), err
		}
		if rest > 0 {
			time.Sleep(rest)
		} else {
			pause(1)
		}
		if rest > 0 || spins%lookEvery == lookEvery-1 {
			if now = time.Now(); now.Sub(last) > patience {
				return 0, now, fmt.Errorf("%w in %v; the back end has closed the connection: %t", ErrStalled, patience, c.front.Disconnected())
			}
		}
	}
}

// stampEvery is the distance of two stamps.
const stampEvery = 4096

// stamp marks p, which belongs at offset off of the disk.
func stamp(p []byte, off uint64) {
	for i := 0; i+8 <= len(p); i += stampEvery {
		binary.LittleEndian.PutUint64(p[i:], stampOf(off+uint64(i)))
	}
}

func stamped(p []byte, off uint64) bool {
	for i := 0; i+8 <= len(p); i += stampEvery {
		if binary.LittleEndian.Uint64(p[i:]) != stampOf(off+uint64(i)) {
			return false
		}
	}
	return true
}

func stampOf(off uint64) uint64 { return (off + 1) * 0x9e3779b97f4a7c15 }

// Pattern fills p with what belongs at offset off of a disk that Job.Check reads.
func Pattern(p []byte, off uint64) {
	clear(p)
	stamp(p, off)
}
