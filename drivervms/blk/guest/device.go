package main

import (
	"fmt"
	"syscall"
	"time"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
)

// device performs operations: what its windows can serve by itself, and the rest with SysDevIO. Requests and segments are
// built in arrays that live as long as the program; the segments are the clients' memory itself.
type device struct {
	reqs    []abi.DevReq
	segs    []abi.DevSeg
	flushes []abi.DevReq // apart, because flushes may be in progress beside the rest
	windows map[int32]*window
	maybe   []candidate // of the batch at hand
	asked   []int       // of the batch at hand: the operations in reqs
	nsegs   int         // of the batch at hand

	// What is used of the host, but for tests.
	now          func() time.Time
	devIO, alone func([]abi.DevReq) (int, error)
}

// candidate is operation i, which a window can serve.
type candidate struct {
	i int
	s span
}

func newDevice(disks []serve.Disk) *device {
	d := &device{
		reqs: make([]abi.DevReq, abi.MaxDevBatch), segs: make([]abi.DevSeg, serve.MaxSegments),
		flushes: make([]abi.DevReq, abi.MaxDevBatch), windows: make(map[int32]*window),
		maybe: make([]candidate, 0, abi.MaxDevBatch), asked: make([]int, 0, abi.MaxDevBatch),
		now: time.Now, devIO: guest.DevIO, alone: guest.DevIOAlone,
	}
	for _, k := range disks {
		d.windows[k.FD] = newWindow(k.FD, k.Size)
	}
	return d
}

// Do implements serve.Device.
func (d *device) Do(ops []serve.Op) {
	if len(ops) == 0 {
		return
	}
	if ops[0].Kind == abi.DevFlush {
		d.flush(ops)
		return
	}
	d.maybe, d.asked, d.nsegs = d.maybe[:0], d.asked[:0], 0
	now := d.now()
	cold := 0
	for i := range ops {
		if ops[i].Kind == abi.DevRead {
			if s, ok := d.windows[ops[i].FD].look(&ops[i], now); ok {
				if ops[i].Length > maxCopy && s.cold > 0 {
					s.warm()
					s.count()
					d.ask(ops, i)
					continue
				}
				d.maybe = append(d.maybe, candidate{i, s})
				cold += s.cold
				continue
			}
		}
		d.ask(ops, i)
	}
	// When the host is asked anyway, or for much, it reads what it can read cheaper.
	leave := len(d.asked) > 0 || cold > fewCold
	for k := range d.maybe {
		c := &d.maybe[k]
		if leave && c.s.cold > 0 && !c.s.counted {
			c.s.count()
			d.ask(ops, c.i)
			continue
		}
		if !c.s.copy(&ops[c.i]) {
			op := &ops[c.i]
			d.windows[op.FD].drop(op.Offset / partBytes)
			d.ask(ops, c.i)
		}
	}
	if len(d.asked) == 0 {
		return
	}
	done, err := d.alone(d.reqs[:len(d.asked)])
	mustPerform(done, len(d.asked), err)
	for k, i := range d.asked {
		ops[i].Result = d.reqs[k].Result
	}
	for _, i := range d.asked {
		if op := &ops[i]; unfinished(op) {
			d.finish(op)
		}
	}
}

// maxTries bounds how often the host is asked for the rest of one operation.
const maxTries = 1000

// unfinished reports whether the host is to be asked again: it was interrupted, or did a part. What it reports as an error is one.
func unfinished(op *serve.Op) bool {
	moves := op.Kind == abi.DevRead || op.Kind == abi.DevWrite
	return again(op.Result) || moves && op.Result > 0 && uint64(op.Result) < op.Length
}

// again reports whether a result is an error that says no more than that the host did not get to it.
func again(result int64) bool {
	return result == -int64(syscall.EINTR) || result == -int64(syscall.EAGAIN)
}

// finish asks the host for the rest of an operation until it is done. One at a time, since it is rare.
func (d *device) finish(op *serve.Op) {
	done := uint64(max(op.Result, 0))
	for range maxTries {
		req := &d.reqs[0]
		*req = abi.DevReq{FD: op.FD, Op: op.Kind, Flags: op.Flags, Offset: op.Offset, Length: op.Length}
		if op.Kind == abi.DevRead || op.Kind == abi.DevWrite {
			n, skip := 0, done
			for _, s := range op.Segs {
				if uint64(len(s)) <= skip {
					skip -= uint64(len(s))
					continue
				}
				d.segs[n] = guest.Segment(s[skip:])
				n, skip = n+1, 0
			}
			req.Offset, req.Length = op.Offset+done, op.Length-done
			req.Segs, req.NSegs = guest.SegmentsOf(d.segs[:n]), uint32(n)
		}
		n, err := d.alone(d.reqs[:1])
		mustPerform(n, 1, err)
		switch {
		case again(req.Result):
			continue
		case req.Result < 0:
			op.Result = req.Result
			return
		}
		done += uint64(req.Result)
		op.Result = int64(done)
		if req.Result == 0 || !unfinished(op) {
			return
		}
	}
}

// flush performs flushes.
func (d *device) flush(ops []serve.Op) {
	for i := range ops {
		d.flushes[i] = abi.DevReq{FD: ops[i].FD, Op: ops[i].Kind}
	}
	// It may take long, and another thread may be at work beside it: the scheduler is to know.
	done, err := d.devIO(d.flushes[:len(ops)])
	mustPerform(done, len(ops), err)
	for i := range ops {
		for range maxTries {
			if !again(d.flushes[i].Result) {
				break
			}
			done, err := d.devIO(d.flushes[i : i+1])
			mustPerform(done, 1, err)
		}
		ops[i].Result = d.flushes[i].Result
	}
}

// ask adds operation i to what the host is asked for.
func (d *device) ask(ops []serve.Op, i int) {
	op := &ops[i]
	op.Left = true
	segs := d.segs[d.nsegs:][:len(op.Segs)]
	d.nsegs += len(segs)
	for k, s := range op.Segs {
		segs[k] = guest.Segment(s)
	}
	d.reqs[len(d.asked)] = abi.DevReq{
		FD: op.FD, Op: op.Kind, Flags: op.Flags, Offset: op.Offset, Length: op.Length,
		Segs: guest.SegmentsOf(segs), NSegs: uint32(len(segs)),
	}
	d.asked = append(d.asked, i)
}

// mustPerform ends the program if the host has not performed all of a batch: it is no longer there, or its idea of the
// batch is another. To complete a request with an error would be wrong, since the next instance can still perform it. (On
// engine process a driver outlives the death of its grailvm by an instant, in which its calls fail with ENOSYS.)
func mustPerform(done, n int, err error) {
	if err != nil || done != n {
		panic(fmt.Sprintf("the host performed %d of %d requests: %v", done, n, err))
	}
}
