package vswitch

import (
	"fmt"
	"testing"
	"time"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// blaster drives both ends of a flow as cheaply as it can: frames are made once, buffers are recycled by index.
type blaster struct {
	from, to *vm
	segs     [][]ring.Segment
	free     []uint64
	done     [256]ring.Completion
}

func newBlaster(from, to *vm, frame []byte) *blaster {
	b := &blaster{from: from, to: to}
	for i := range from.size {
		at := from.out + uint64(i)*uint64(from.outBytes)
		copy(from.bytes[at:], append(make([]byte, virtionet.HeaderBytes), frame...))
		b.segs = append(b.segs, []ring.Segment{{Addr: at, Len: uint32(virtionet.HeaderBytes + len(frame))}})
		b.free = append(b.free, uint64(i))
	}
	return b
}

func (b *blaster) fill() {
	tx := b.from.tx[0]
	n, _ := tx.Used(b.done[:])
	for _, c := range b.done[:n] {
		b.free = append(b.free, c.Token)
	}
	for _, i := range b.free {
		if err := tx.Add(b.segs[i], nil, i); err != nil {
			panic(err)
		}
	}
	b.free = b.free[:0]
	tx.Publish()
}

func (b *blaster) drain() int {
	rx := b.to.rx[0]
	n, _ := rx.Used(b.done[:])
	for _, c := range b.done[:n] {
		b.to.offer(0, c.Token)
	}
	rx.Publish()
	return n
}

// BenchmarkForward is the switch and both clients on one thread: what one processor does in all.
func BenchmarkForward(b *testing.B) {
	for _, size := range []int{64, 512, 1500} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			o := vmOptions{size: 256}
			x, y := newVM(b, 1, portAt(1, 0), o), newVM(b, 2, portAt(2, 0), o)
			s := newBed(b, nil, x, y)
			bl := newBlaster(x, y, between(x, y, string(make([]byte, size-42))))
			b.SetBytes(int64(size))
			b.ResetTimer()
			for n := 0; n < b.N; {
				bl.fill()
				s.time += 1000
				s.Round()
				n += bl.drain()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
			if c, _ := s.Counters(1); c.Drops != [numReasons]uint64{} {
				b.Error(c.Map())
			}
		})
	}
}

// BenchmarkSwitch is the switch alone: what the clients do is not counted.
func BenchmarkSwitch(b *testing.B) {
	for _, size := range []int{64, 1500, 64000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			o := vmOptions{size: 256}
			if size > 1500 {
				o = vmOptions{size: 256, features: allOffloads, bufBytes: 4096}
			}
			x, y := newVM(b, 1, portAt(1, 0), o), newVM(b, 2, portAt(2, 0), o)
			s := newBed(b, nil, x, y)
			frame := between(x, y, string(make([]byte, min(size, 1500)-42)))
			var h virtionet.Header
			if size > 1500 {
				h, frame = largeTCP(x, y, size, 1448)
			}
			bl := newBlaster(x, y, frame)
			for i := range bl.segs {
				h.Encode(x.bytes[bl.segs[i][0].Addr:])
			}
			b.ResetTimer()
			var spent time.Duration
			n := 0
			for n < b.N {
				bl.fill()
				s.time += 1000
				start := time.Now()
				n += s.Round()
				spent += time.Since(start)
				for bl.drain() > 0 {
				}
			}
			b.ReportMetric(float64(spent.Nanoseconds())/float64(n), "ns/op")
			b.ReportMetric(float64(n)/spent.Seconds(), "packets/s")
			if c, _ := s.Counters(1); c.Drops != [numReasons]uint64{} {
				b.Error(c.Map())
			}
		})
	}
}
