package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// server verifies a disk at the request of whoever is at the other end of in and out, and goes on after errors. One line is one command:
//
//	pace US     every worker makes an operation each so many microseconds; 0, as in the beginning: none
//	probe N     every worker writes, flushes and reads back; answered "probe N OPS US" once all have, with what was done since the last
//	            probe, and the longest time that an operation of these took
//	check N     every worker reads all that it ever wrote; answered "check N BLOCKS"
//	table N     answered by "block B OP[,OP…]" for every block that was written, with the operations that may have been the last to
//	            write it, and "table N"
//
// What goes wrong is said at once: "error WHAT" for a request that was refused, "bad FAULT WHAT" for a block that is not as it must be.
type server struct {
	run  *Run
	disk Disk

	mu      sync.Mutex // guards what follows, and the output
	out     io.Writer
	done    int
	longest time.Duration
	workers []*serving
}

// serving is one worker of a server.
type serving struct {
	s     *server
	index int
	rnd   *rand.Rand
	first int        // its first block
	may   [][]uint64 // by block: the operations that may have written it last, one unless a write failed; none: not known
	op    int
	buf   []byte
	asks  chan func()
	pace  chan time.Duration
}

// maxServed bounds an operation of a server's, in blocks: the campaign has many.
const maxServed = 8

// serve works until in ends. dirty says that the disk holds something else in the beginning, and not zeros.
func (r *Run) serve(d Disk, in io.Reader, out io.Writer, dirty bool) error {
	blocks, err := r.share(d)
	if err != nil {
		return err
	}
	s := &server{run: r, disk: d, out: out}
	var wg sync.WaitGroup
	for i := range r.Workers {
		w := &serving{s: s, index: i, rnd: rand.New(rand.NewPCG(r.Seed, uint64(i))), first: i * blocks, may: make([][]uint64, blocks),
			buf: make([]byte, maxServed*blockSize), asks: make(chan func(), 1), pace: make(chan time.Duration)}
		if !dirty {
			for b := range w.may {
				w.may[b] = []uint64{0}
			}
		}
		s.workers = append(s.workers, w)
		wg.Go(w.loop)
	}
	s.say("ready")
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if err := s.command(lines.Text()); err != nil {
			s.say("error %v", err)
		}
	}
	for _, w := range s.workers {
		close(w.asks)
	}
	wg.Wait()
	return lines.Err()
}

func (s *server) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format+"\n", args...)
}

// command carries out one line. What takes time is answered later.
func (s *server) command(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	n, err := strconv.ParseUint(arg, 10, 32)
	if err != nil {
		return fmt.Errorf("command %q: expected a number", line)
	}
	switch verb {
	case "pace":
		for _, w := range s.workers {
			w.pace <- time.Duration(n) * time.Microsecond
		}
	case "probe":
		s.each((*serving).probe, func([]int) {
			s.mu.Lock()
			done, longest := s.done, s.longest
			s.done, s.longest = 0, 0
			s.mu.Unlock()
			s.say("probe %d %d %d", n, done, longest.Microseconds())
		})
	case "check":
		s.each((*serving).checkAll, func(blocks []int) {
			sum := 0
			for _, b := range blocks {
				sum += b
			}
			s.say("check %d %d", n, sum)
		})
	case "table":
		s.each((*serving).table, func([]int) { s.say("table %d", n) })
	default:
		return fmt.Errorf("unknown command %q", line)
	}
	return nil
}

// each has every worker do something, and calls then with what each returned.
func (s *server) each(do func(*serving) int, then func([]int)) {
	results := make([]int, len(s.workers))
	var wg sync.WaitGroup
	for i, w := range s.workers {
		wg.Add(1)
		ask := func() {
			defer wg.Done()
			results[i] = do(w)
		}
		go func() { w.asks <- ask }() // the worker may be in a request that takes long
	}
	go func() {
		wg.Wait()
		then(results)
	}()
}

// loop carries out what is asked, and operations at the given pace in between, until asks is closed.
func (w *serving) loop() {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	go func() { // so that a pace is taken while a request takes long
		for p := range w.pace {
			if p == 0 {
				p = time.Hour
			}
			tick.Reset(p)
		}
	}()
	for {
		select {
		case ask, more := <-w.asks:
			if !more {
				close(w.pace)
				return
			}
			ask()
		case <-tick.C:
			w.step()
		}
	}
}

// step makes one operation at random.
func (w *serving) step() {
	first, n := w.somewhere()
	switch w.rnd.IntN(8) {
	case 0:
		w.flush()
	case 1, 2, 3:
		w.read(first, n)
	default:
		w.write(first, n)
	}
}

func (w *serving) somewhere() (first, n int) {
	first = w.rnd.IntN(len(w.may))
	return first, min(1+w.rnd.IntN(maxServed), len(w.may)-first)
}

func (w *serving) probe() int {
	first, n := w.somewhere()
	w.write(first, n)
	w.flush()
	w.read(first, n)
	return 0
}

func (w *serving) checkAll() (blocks int) {
	for first := 0; first < len(w.may); first += maxServed {
		w.read(first, min(maxServed, len(w.may)-first))
	}
	for _, may := range w.may {
		if len(may) > 0 && may[0] != 0 {
			blocks++
		}
	}
	return blocks
}

func (w *serving) table() int {
	for b, may := range w.may {
		if len(may) == 1 && may[0] == 0 || len(may) == 0 {
			continue
		}
		w.s.say("block %d %s", w.first+b, strings.Trim(strings.ReplaceAll(fmt.Sprint(may), " ", ","), "[]"))
	}
	return 0
}

// timed makes one request, and says its error.
func (w *serving) timed(what string, first, n int, request func() error) error {
	begin := time.Now()
	err := request()
	took := time.Since(begin)
	w.s.mu.Lock()
	w.s.done++
	w.s.longest = max(w.s.longest, took)
	w.s.mu.Unlock()
	if err != nil {
		w.s.say("error %s of %d blocks at %d: %v", what, n, w.first+first, err)
	}
	return err
}

func (w *serving) write(first, n int) {
	w.op++
	p := w.buf[:n*blockSize]
	for i := range n {
		fill(p[i*blockSize:], w.s.run.Seed, uint64(w.first+first+i), uint64(w.op))
	}
	err := w.timed("write", first, n, func() error {
		_, err := w.s.disk.WriteAt(p, int64(w.first+first)*blockSize)
		return err
	})
	for i := range n {
		may := &w.may[first+i]
		switch {
		case err == nil:
			*may = append((*may)[:0], uint64(w.op))
		case len(*may) > 0: // otherwise nothing is known of it, and stays so
			*may = append(*may, uint64(w.op))
		}
	}
}

func (w *serving) flush() { _ = w.timed("flush", 0, 0, w.s.disk.Flush) }

func (w *serving) read(first, n int) {
	p := w.buf[:n*blockSize]
	err := w.timed("read", first, n, func() error {
		_, err := w.s.disk.ReadAt(p, int64(w.first+first)*blockSize)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return err
	})
	if err != nil {
		return
	}
	for i := range n {
		may := &w.may[first+i]
		if len(*may) == 0 {
			continue
		}
		if err := check(p[i*blockSize:][:blockSize], w.s.run.Seed, uint64(w.first+first+i), *may); err != nil {
			f := changed
			if bad := new(wrong); errors.As(err, &bad) {
				f = bad.fault
			}
			w.s.say("bad %s %v", f, err)
			*may = nil // said once
		}
	}
}

// checkTable compares a disk with lines "block B OP[,OP…]", and returns how many blocks are as they say.
func (r *Run) checkTable(d Disk, table io.Reader) (int, error) {
	p := make([]byte, blockSize)
	lines := bufio.NewScanner(table)
	n := 0
	for ; lines.Scan(); n++ {
		f := strings.Fields(lines.Text())
		if len(f) != 3 || f[0] != "block" {
			return n, fmt.Errorf("table: line %q", lines.Text())
		}
		block, err := strconv.ParseUint(f[1], 10, 32)
		var may []uint64
		for s := range strings.SplitSeq(f[2], ",") {
			op, operr := strconv.ParseUint(s, 10, 64)
			may, err = append(may, op), errors.Join(err, operr)
		}
		if err != nil {
			return n, fmt.Errorf("table: line %q: %w", lines.Text(), err)
		}
		if _, err := d.ReadAt(p, int64(block)*blockSize); err != nil {
			return n, err
		}
		if err := check(p, r.Seed, block, slices.Compact(may)); err != nil {
			return n, err
		}
	}
	return n, lines.Err()
}
