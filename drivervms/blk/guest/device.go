package main

import (
	"fmt"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
)

// device performs operations with SysDevIO. Requests and segments are built in arrays that live as long as
// the program; the segments are the clients' memory itself, so no data is copied here.
type device struct {
	reqs    []abi.DevReq
	segs    []abi.DevSeg
	flushes []abi.DevReq // apart, because flushes may be in progress beside the rest
}

func newDevice() *device {
	return &device{
		reqs: make([]abi.DevReq, abi.MaxDevBatch), segs: make([]abi.DevSeg, serve.MaxSegments),
		flushes: make([]abi.DevReq, abi.MaxDevBatch),
	}
}

// Do implements serve.Device.
func (d *device) Do(ops []serve.Op) {
	if len(ops) == 0 {
		return
	}
	reqs, n := d.reqs[:len(ops)], 0
	if ops[0].Kind == abi.DevFlush {
		reqs = d.flushes[:len(ops)]
	}
	for i := range ops {
		op := &ops[i]
		segs := d.segs[n : n+len(op.Segs)]
		for k, s := range op.Segs {
			segs[k] = guest.Segment(s)
		}
		n += len(segs)
		reqs[i] = abi.DevReq{
			FD: op.FD, Op: op.Kind, Flags: op.Flags, Offset: op.Offset, Length: op.Length,
			Segs: guest.SegmentsOf(segs), NSegs: uint32(len(segs)),
		}
	}
	do := guest.DevIOAlone
	if ops[0].Kind == abi.DevFlush {
		do = guest.DevIO // it may take long, and another thread may be at work beside it
	}
	done, err := do(reqs)
	mustPerform(done, len(reqs), err)
	for i := range ops {
		ops[i].Result = reqs[i].Result
	}
}

// mustPerform ends the program if the host has not performed all of a batch: it is no longer there, or its idea of the
// batch is another. To complete a request with an error would be wrong, since the next instance can still perform it. (On
// engine process a driver outlives the death of its grailvm by an instant, in which its calls fail with ENOSYS.)
func mustPerform(done, n int, err error) {
	if err != nil || done != n {
		panic(fmt.Sprintf("the host performed %d of %d requests: %v", done, n, err))
	}
}
