package load

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/grailos/grail/ring"
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
	// Most is how many frames are sent or taken at once, at most, so that other streams of the same goroutine need not wait; 0: all.
	Most int
	// Latencies, when not nil, takes the time of each frame; Depth is 1.
	Latencies *Latencies
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
func RunStream(a, b *NIC, s Stream) (StreamResult, error) {
	r, err := RunStreams([]Pair{{a, b, s}})
	return r[0], err
}

// Pair is a Stream from A to B.
type Pair struct {
	A, B *NIC
	Stream
}

// RunStreams runs several streams at once, in turn on this goroutine, each until its end.
func RunStreams(pairs []Pair) ([]StreamResult, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	results := make([]StreamResult, len(pairs))
	list := make([]*running, len(pairs))
	for i, p := range pairs {
		var err error
		if list[i], err = p.start(); err != nil {
			return results, err
		}
	}
	for left := len(list); left > 0; {
		idle := true
		for i, r := range list {
			if r.over {
				continue
			}
			moved, err := r.step()
			results[i] = r.StreamResult
			if err != nil {
				return results, err
			}
			idle = idle && !moved
			if r.over {
				left--
			}
		}
		if idle {
			pause(1)
		}
	}
	return results, nil
}

// running is a Stream under way.
type running struct {
	StreamResult
	a, b  *NIC
	s     Stream
	total int
	free  []uint64
	next  uint64 // number that may come next
	kicks uint64
	spins int

	begin, last, now time.Time
	ending, over     bool
	asked            time.Time
}

func (p *Pair) start() (*running, error) {
	s := p.Stream
	if s.Bytes < len(s.Frame)+8 || s.Bytes > nicBuffer-virtionet.HeaderBytes {
		return nil, fmt.Errorf("load: frames of %d bytes, header %d", s.Bytes, len(s.Frame))
	}
	entries := len(p.A.done)
	if s.Depth == 0 || s.Depth > entries {
		s.Depth = entries
	}
	if s.Most == 0 {
		s.Most = entries
	}
	r := &running{a: p.A, b: p.B, s: s, total: virtionet.HeaderBytes + s.Bytes, free: make([]uint64, 0, entries), spins: 1}
	for i := range uint64(entries) {
		buf := r.a.buffer(r.a.tx, i)
		clear(buf)
		copy(buf[virtionet.HeaderBytes:], s.Frame)
	}
	for i := range uint64(s.Depth) {
		r.free = append(r.free, i)
	}
	r.kicks = r.a.tx.kicks + r.b.rx.kicks
	r.begin = time.Now()
	r.last, r.now = r.begin, r.begin
	return r, nil
}

// number is the last bytes of a frame.
func (r *running) number(buf []byte) []byte { return buf[r.total-8 : r.total] }

// send sends from the buffers that are free, at most Stream.Most.
func (r *running) send() error {
	n := min(len(r.free), r.s.Most)
	if r.s.Latencies != nil {
		r.asked = time.Now()
	}
	for _, i := range r.free[len(r.free)-n:] {
		binary.LittleEndian.PutUint64(r.number(r.a.buffer(r.a.tx, i)), r.Sent)
		r.Sent++
		if err := r.a.send(i, r.total); err != nil {
			return err
		}
	}
	r.free = r.free[:len(r.free)-n]
	return r.a.tx.publish()
}

// take checks frame u that was received, and gives its buffer back.
func (r *running) take(u ring.Completion) error {
	buf := r.b.buffer(r.b.rx, u.Token)
	k := binary.LittleEndian.Uint64(r.number(buf))
	if int(u.Written) != r.total || k < r.next || k >= r.Sent {
		// A crashed driver's last frames may come twice.
		if r.s.From == nil || int(u.Written) != r.total {
			return fmt.Errorf("load: frame %d of %d bytes where %d of %d was due", k, u.Written, r.next, r.total)
		}
	}
	r.next = max(r.next, k+1)
	return r.b.offer(u.Token)
}

// step sends and receives what there is, and reports whether anything came.
func (r *running) step() (moved bool, err error) {
	a, b, s := r.a, r.b, &r.s
	n, err := a.tx.drv.Used(a.done)
	if err != nil {
		return false, err
	}
	for _, u := range a.done[:n] {
		r.free = append(r.free, u.Token)
	}
	// With latencies, the next frame is sent when the last one has come.
	if !r.ending && len(r.free) > 0 && (s.Latencies == nil || r.next == r.Sent) {
		if err := r.send(); err != nil {
			return false, err
		}
	}
	if n, err = b.rx.drv.Used(b.done[:min(len(b.done), s.Most)]); err != nil {
		return false, err
	}
	for _, u := range b.done[:n] {
		if err := r.take(u); err != nil {
			return false, err
		}
	}
	if n > 0 {
		if r.Elapsed == 0 {
			r.Packets += uint64(n)
		}
		if err := b.rx.publish(); err != nil {
			return false, err
		}
		r.now = time.Now()
		if s.Latencies != nil {
			s.Latencies.add(r.now.Sub(r.asked))
		}
		if gap := r.now.Sub(r.last); gap > r.Stall && (s.From == nil || s.From.Load() <= r.now.UnixNano()) {
			r.Stall = gap
		}
		r.last, r.spins = r.now, 1
		r.ending = r.ending || s.Time > 0 && r.now.Sub(r.begin) >= s.Time || s.Stop != nil && s.Stop.Load()
		if r.ending && r.Elapsed == 0 {
			r.Elapsed = r.now.Sub(r.begin)
			r.Kicks = a.tx.kicks + b.rx.kicks - r.kicks
		}
		return true, nil
	}
	if r.spins++; r.spins%lookEvery == 0 {
		r.now = time.Now()
		if s.Latencies != nil && len(r.free) == s.Depth && r.now.Sub(r.last) > quiet {
			r.next = r.Sent // the frame was lost
		}
		switch {
		case r.ending && len(r.free) == s.Depth && r.now.Sub(r.last) > quiet:
			r.over = true
		case r.now.Sub(r.last) > patience:
			return false, fmt.Errorf("%w in %v; the back ends have closed the connections: %t, %t", ErrStalled, patience, a.front.Disconnected(), b.front.Disconnected())
		}
	}
	return false, nil
}
