package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// Disk is what is verified.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Flush() error
	Size() int64
}

// Run is a verification.
type Run struct {
	Seed     uint64
	Workers  int
	Ops      int             // of each worker, when Time is 0
	Time     time.Duration   // when not 0, how long
	Stop     <-chan struct{} // closed: end early, as if the time were over
	Area     int64           // bytes used of the disk, at most
	Progress func(Stats)     // called after operations, from one goroutine at a time
	Flushed  func(worker, op int)
}

// Stats counts what a Run did.
type Stats struct {
	Ops, Written, Verified, Flushes int
	Time, Longest                   time.Duration
}

// maxRun is the largest number of blocks in one operation.
const maxRun = 16

// op is one operation of a worker.
type op struct {
	kind     byte // 'w', 'r' or 'f'
	first, n int  // blocks, within the worker's part
}

// generator yields a worker's operations, which depend on seed and worker alone.
type generator struct {
	rnd    *rand.Rand
	blocks int
}

func (r *Run) generator(worker, blocks int) *generator {
	return &generator{rand.New(rand.NewPCG(r.Seed, uint64(worker))), blocks}
}

func (g *generator) next() op {
	o := op{kind: "wwwwrrrf"[g.rnd.IntN(8)]}
	o.first = g.rnd.IntN(g.blocks)
	o.n = min(1+g.rnd.IntN(maxRun), g.blocks-o.first)
	return o
}

// share returns how many blocks each worker has.
func (r *Run) share(d Disk) (int, error) {
	n := min(d.Size(), r.Area) / blockSize / int64(max(r.Workers, 1))
	if r.Workers < 1 || n < 1 {
		return 0, fmt.Errorf("%d workers on %d bytes", r.Workers, min(d.Size(), r.Area))
	}
	return int(n), nil
}

// Do runs the workers until the end. Errors: the first I/O error or difference.
func (r *Run) Do(d Disk) (Stats, error) {
	var s Stats
	blocks, err := r.share(d)
	if err != nil {
		return s, err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range r.Workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w := worker{run: r, disk: d, index: i, blocks: blocks, last: make([]int, blocks), buf: make([]byte, maxRun*blockSize)}
			g := r.generator(i, blocks)
			for n := 1; r.goesOn(n, begin); n++ {
				o := g.next()
				t := time.Now()
				e := w.do(n, o)
				took := time.Since(t)
				mu.Lock()
				if e != nil && err == nil {
					err = fmt.Errorf("worker %d, operation %d: %w", i, n, e)
				}
				s.count(o, took)
				s.Time = time.Since(begin)
				if r.Progress != nil {
					r.Progress(s)
				}
				stop := err != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		}()
	}
	wg.Wait()
	return s, err
}

// goesOn reports whether a worker is to make operation n.
func (r *Run) goesOn(n int, begin time.Time) bool {
	select {
	case <-r.Stop:
		return false
	default:
	}
	if r.Time > 0 {
		return time.Since(begin) < r.Time
	}
	return n <= r.Ops
}

func (s *Stats) count(o op, took time.Duration) {
	s.Ops++
	s.Longest = max(s.Longest, took)
	switch o.kind {
	case 'w':
		s.Written += o.n
	case 'r':
		s.Verified += o.n
	default:
		s.Flushes++
	}
}

// worker owns blocks [index*blocks, (index+1)*blocks).
type worker struct {
	run    *Run
	disk   Disk
	index  int
	blocks int
	last   []int // by block: the operation that wrote it last, 0 for none of this run
	buf    []byte
}

func (w *worker) do(n int, o op) error {
	base := uint64(w.index*w.blocks + o.first)
	p := w.buf[:o.n*blockSize]
	switch o.kind {
	case 'w':
		for i := range o.n {
			fill(p[i*blockSize:], w.run.Seed, base+uint64(i), uint64(n))
		}
		if _, err := w.disk.WriteAt(p, int64(base)*blockSize); err != nil {
			return err
		}
		for i := range o.n {
			w.last[o.first+i] = n
		}
	case 'r':
		if _, err := w.disk.ReadAt(p, int64(base)*blockSize); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for i := range o.n {
			want := w.last[o.first+i]
			if want == 0 {
				continue
			}
			if err := check(p[i*blockSize:][:blockSize], w.run.Seed, base+uint64(i), []uint64{uint64(want)}); err != nil {
				return err
			}
		}
	default:
		if err := w.disk.Flush(); err != nil {
			return err
		}
		if w.run.Flushed != nil {
			w.run.Flushed(w.index, n)
		}
	}
	return nil
}

// Check verifies what a run left on d that ended at any moment, if a flush as each worker's operation marks
// was acknowledged: every block that was written before is of that operation or a later one, and whole. It
// returns the number of blocks checked.
func (r *Run) Check(d Disk, marks map[int]int) (int, error) {
	blocks, err := r.share(d)
	if err != nil {
		return 0, err
	}
	checked := 0
	p := make([]byte, blockSize)
	for worker, mark := range marks {
		if worker < 0 || worker >= r.Workers {
			return checked, fmt.Errorf("worker %d of %d", worker, r.Workers)
		}
		g := r.generator(worker, blocks)
		last := make([]int, blocks)
		for n := 1; n < mark; n++ {
			if o := g.next(); o.kind == 'w' {
				for i := range o.n {
					last[o.first+i] = n
				}
			}
		}
		for i, want := range last {
			if want == 0 {
				continue
			}
			b := uint64(worker*blocks + i)
			if _, err := d.ReadAt(p, int64(b)*blockSize); err != nil {
				return checked, err
			}
			got, err := opOf(p, r.Seed, b)
			if err != nil {
				return checked, err
			}
			if got < uint64(want) {
				return checked, &wrong{stale, b, fmt.Sprintf("it is of operation %d; operation %d was acknowledged as durable", got, want)}
			}
			checked++
		}
	}
	return checked, nil
}
