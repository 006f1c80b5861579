package load

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/grailos/grail/ring/virtionet"
)

// Stream is a load of frames from one NIC to another.
type Stream struct {
	Frame []byte // its first bytes, from the Ethernet header on; the last 8 hold a number
	Bytes int    // of each frame, at least len(Frame)+8
	Depth int    // frames on their way, at most; 0: as many as there are buffers

	Time time.Duration // how long it runs; 0: until Stop
	Stop *atomic.Bool  // as Job's
	From *atomic.Int64 // as Job's
}

// StreamResult is what a Stream did.
type StreamResult struct {
	Packets uint64 // received
	Sent    uint64
	Elapsed time.Duration
	Kicks   uint64 // times that the back end wanted a doorbell rung, of either queue
	// The longest time without a frame that ended after Stream.From.
	Stall time.Duration
}

// PerSecond returns the frames received a second.
func (r StreamResult) PerSecond() float64 { return float64(r.Packets) / r.Elapsed.Seconds() }

// quiet is how long nothing must have come until a stream that sends no more has ended.
const quiet = 20 * time.Millisecond

// RunStream sends frames by a and takes them from b, all on this goroutine, until the stream's end. Errors: a frame that comes back with other bytes
// or in another order; ErrStalled; what a back end did wrong. Frames that are lost are none.
func RunStream(a, b *NIC, s Stream) (r StreamResult, err error) {
	if s.Bytes < len(s.Frame)+8 || s.Bytes > nicBuffer-virtionet.HeaderBytes {
		return r, fmt.Errorf("load: frames of %d bytes, header %d", s.Bytes, len(s.Frame))
	}
	if s.Depth == 0 || s.Depth > nicQueueSize {
		s.Depth = nicQueueSize
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	total := virtionet.HeaderBytes + s.Bytes
	for i := range uint64(nicQueueSize) {
		buf := a.buffer(a.tx, i)
		clear(buf)
		copy(buf[virtionet.HeaderBytes:], s.Frame)
	}
	number := func(buf []byte) []byte { return buf[total-8 : total] }
	free := make([]uint64, 0, nicQueueSize)
	for i := range uint64(s.Depth) {
		free = append(free, i)
	}
	kicks := a.tx.kicks + b.rx.kicks
	begin := time.Now()
	last, now := begin, begin
	ending := false
	var next uint64 // number that may come next
	for spins := 1; ; spins++ {
		n, err := a.tx.drv.Used(a.done[:])
		if err != nil {
			return r, err
		}
		for _, u := range a.done[:n] {
			free = append(free, u.Token)
		}
		if !ending && len(free) > 0 {
			for _, i := range free {
				binary.LittleEndian.PutUint64(number(a.buffer(a.tx, i)), r.Sent)
				r.Sent++
				if err := a.send(i, total); err != nil {
					return r, err
				}
			}
			free = free[:0]
			if err := a.tx.publish(); err != nil {
				return r, err
			}
		}
		if n, err = b.rx.drv.Used(b.done[:]); err != nil {
			return r, err
		}
		for _, u := range b.done[:n] {
			buf := b.buffer(b.rx, u.Token)
			k := binary.LittleEndian.Uint64(number(buf))
			if int(u.Written) != total || k < next || k >= r.Sent {
				// A crashed driver's last frames may come twice.
				if s.From == nil || int(u.Written) != total {
					return r, fmt.Errorf("load: frame %d of %d bytes where %d of %d was due", k, u.Written, next, total)
				}
			}
			next = max(next, k+1)
			if err := b.offer(u.Token); err != nil {
				return r, err
			}
		}
		if n > 0 {
			if r.Elapsed == 0 {
				r.Packets += uint64(n)
			}
			if err := b.rx.publish(); err != nil {
				return r, err
			}
			now = time.Now()
			if gap := now.Sub(last); gap > r.Stall && (s.From == nil || s.From.Load() <= now.UnixNano()) {
				r.Stall = gap
			}
			last, spins = now, 1
			ending = ending || s.Time > 0 && now.Sub(begin) >= s.Time || s.Stop != nil && s.Stop.Load()
			if ending && r.Elapsed == 0 {
				r.Elapsed = now.Sub(begin)
				r.Kicks = a.tx.kicks + b.rx.kicks - kicks
			}
			continue
		}
		pause(1)
		if spins%lookEvery == 0 {
			now = time.Now()
			switch {
			case ending && len(free) == s.Depth && now.Sub(last) > quiet:
				return r, nil
			case now.Sub(last) > patience:
				return r, fmt.Errorf("%w in %v; the back ends have closed the connections: %t, %t", ErrStalled, patience, a.front.Disconnected(), b.front.Disconnected())
			}
		}
	}
}
