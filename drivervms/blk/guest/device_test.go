package main

import (
	"bytes"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/hv/abi"
)

// moody performs requests in part, or not at all, at random.
func (h *hostSide) moody(random *rand.Rand) func([]abi.DevReq) (int, error) {
	return func(reqs []abi.DevReq) (int, error) {
		for i := range reqs {
			r := &reqs[i]
			switch random.IntN(4) {
			case 0:
				r.Result = -int64(syscall.EINTR)
				continue
			case 1:
				r.Result = -int64(syscall.EAGAIN)
				continue
			}
			if r.Op != abi.DevRead && r.Op != abi.DevWrite {
				r.Result = 0
				continue
			}
			at, left := r.Offset, 1+random.Uint64N(r.Length)
			r.Result = int64(left)
			for _, s := range h.segments(r) {
				s = s[:min(uint64(len(s)), left)]
				if r.Op == abi.DevRead {
					copy(s, h.disk[at:])
				} else {
					copy(h.disk[at:], s)
				}
				at, left = at+uint64(len(s)), left-uint64(len(s))
			}
		}
		return len(reqs), nil
	}
}

// A host that does things in part, or is interrupted, is asked for the rest.
func TestPartsAreContinued(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	d, h := windowed(partBytes)
	h.refuse = true // no windows: the host is asked for all
	d.alone, d.devIO = h.moody(random), h.moody(random)
	for range 300 {
		off, n := 512*random.Uint64N(100), 512*(1+random.Uint64N(16))
		far := partBytes/2 + off
		ops := []serve.Op{h.op(off, n), h.op(far, n), {FD: windowFD, Kind: abi.DevDiscard, Offset: far, Length: 512}}
		want := bytes.Clone(h.disk[off:][:n])
		ops[1].Kind = abi.DevWrite
		for _, s := range ops[1].Segs {
			for i := range s {
				s[i] = byte(random.Uint32())
			}
		}
		d.Do(ops)
		if ops[0].Result != int64(n) || !bytes.Equal(bytes.Join(ops[0].Segs, nil), want) {
			t.Fatalf("read of %d bytes at %d: result %d, or other data", n, off, ops[0].Result)
		}
		if ops[1].Result != int64(n) || !bytes.Equal(bytes.Join(ops[1].Segs, nil), h.disk[far:][:n]) {
			t.Fatalf("write of %d bytes at %d: result %d, or other data", n, far, ops[1].Result)
		}
		flush := []serve.Op{{FD: windowFD, Kind: abi.DevFlush}}
		d.Do(flush)
		if ops[2].Result != 0 || flush[0].Result != 0 {
			t.Fatalf("discard %d, flush %d", ops[2].Result, flush[0].Result)
		}
		clear(h.buffers)
	}
}

// What the host reports as an error is one, also for the rest of an operation; and a host that is never ready is not asked for ever.
func TestErrorsArePassedOn(t *testing.T) {
	d, h := windowed(partBytes)
	h.refuse = true
	results := []int64{512, -int64(syscall.EIO)}
	asked := 0
	d.alone = func(reqs []abi.DevReq) (int, error) {
		reqs[0].Result = results[min(asked, len(results)-1)]
		asked++
		return 1, nil
	}
	ops := []serve.Op{h.op(0, 4096)}
	if d.Do(ops); ops[0].Result != -int64(syscall.EIO) || asked != 2 {
		t.Errorf("result %d after %d requests", ops[0].Result, asked)
	}
	asked, results = 0, []int64{1024, 0} // the device ends there
	if d.Do(ops); ops[0].Result != 1024 || asked != 2 {
		t.Errorf("result %d after %d requests", ops[0].Result, asked)
	}
	asked, results = 0, []int64{-int64(syscall.EAGAIN)}
	if d.Do(ops); ops[0].Result != -int64(syscall.EAGAIN) || asked != maxTries+1 {
		t.Errorf("result %d after %d requests", ops[0].Result, asked)
	}
}
