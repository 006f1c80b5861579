package ring_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/grailos/grail/ring"
)

// BenchmarkRequest is the cost of both ends together, on one processor: add, publish, pop, push, publish, used.
func BenchmarkRequest(b *testing.B) {
	for _, batch := range []int{1, 32} {
		for _, mode := range []struct {
			name     string
			features uint64
			table    uint16
			log      bool
		}{
			{"direct", ring.FeatureEventIdx, 0, false},
			{"direct,log", ring.FeatureEventIdx, 0, true},
			{"indirect", ring.FeatureEventIdx | ring.FeatureIndirect, 4, false},
		} {
			b.Run(fmt.Sprintf("batch=%d/%s", batch, mode.name), func(b *testing.B) {
				q := newBed(b, 128, mode.features, 0, mode.table, mode.log)
				readable := []ring.Segment{{Addr: q.data, Len: 16}}
				writable := []ring.Segment{{Addr: q.data + 64, Len: 4096}, {Addr: q.data + 16, Len: 1}}
				chains := make([]ring.Chain, batch)
				done := make([]ring.Completion, batch)
				b.ReportAllocs()
				for i := 0; i < b.N; i += batch {
					for k := range batch {
						if err := q.drv.Add(readable, writable, uint64(k)); err != nil {
							b.Fatal(err)
						}
					}
					q.drv.Publish()
					for k := range batch {
						if ok, err := q.dev.Pop(&chains[k]); !ok {
							b.Fatal(err)
						}
					}
					for k := range batch {
						q.dev.Push(chains[k].Head, 4097)
					}
					q.dev.Publish()
					if n, err := q.drv.Used(done); n != batch {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}

// BenchmarkPingPong is one request at a time between two threads.
func BenchmarkPingPong(b *testing.B) {
	for name, spin := range map[string]time.Duration{"poll": time.Second, "adaptive": 0, "sleep": -1} {
		b.Run(name, func(b *testing.B) { pingPong(b, spin, 1) })
	}
}

// BenchmarkStream keeps 32 requests outstanding between two threads.
func BenchmarkStream(b *testing.B) {
	for name, spin := range map[string]time.Duration{"poll": time.Second, "adaptive": 0, "sleep": -1} {
		b.Run(name, func(b *testing.B) { pingPong(b, spin, 32) })
	}
}

func pingPong(b *testing.B, spin time.Duration, depth int) {
	s, err := ring.NewShared("bench", echoBytes(64))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	e := &echo{mem: s.Mem, size: 64, features: ring.FeatureEventIdx, spin: spin, count: b.N}
	e.kick, e.call = bells(b)
	l := newLoad(b, e)
	result := make(chan error, 1)
	go func() { result <- e.run() }()
	b.ResetTimer()
	for sent, got := 0, 0; got < b.N; {
		k := min(depth-(sent-got), b.N-sent)
		l.fill(b, k)
		sent += k
		got += l.reap(b)
	}
	if err := <-result; err != nil {
		b.Fatal(err)
	}
	st := l.poll.Stats()
	b.ReportMetric(float64(st.Sleeps)/float64(b.N), "sleeps/op")
	b.ReportMetric(float64(st.Preempted)/float64(b.N), "preempted/op")
}
