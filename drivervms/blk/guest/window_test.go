package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
)

const windowFD = 7

// hostSide is a host with one device, and counts what it is asked for.
type hostSide struct {
	disk         []byte
	at           time.Time
	calls, reqs  int
	maps, unmaps int
	refuse       bool
	fail         error
	d            *device
	buffers      map[uint64][]byte // what readOp made, by address
}

// segments returns the memory that a request names.
func (h *hostSide) segments(r *abi.DevReq) (list [][]byte) {
	first := (r.Segs - guest.SegmentsOf(h.d.segs)) / abi.DevSegSize
	for _, s := range h.d.segs[first:][:r.NSegs] {
		for addr, b := range h.buffers { // the rest of a segment begins within one
			if off := s.Addr - addr; off < uint64(len(b)) {
				list = append(list, b[off:][:s.Len])
			}
		}
	}
	return list
}

func (h *hostSide) do(reqs []abi.DevReq) (int, error) {
	if h.fail != nil {
		return 0, h.fail
	}
	h.calls++
	h.reqs += len(reqs)
	for i := range reqs {
		r := &reqs[i]
		at := r.Offset
		for _, s := range h.segments(r) {
			if r.Op == abi.DevRead {
				copy(s, h.disk[at:])
			} else {
				copy(h.disk[at:], s)
			}
			at += uint64(len(s))
		}
		r.Result = int64(r.Length)
	}
	return len(reqs), nil
}

// windowed returns a device on a host's disk of size bytes.
func windowed(size uint64) (*device, *hostSide) {
	h := &hostSide{disk: make([]byte, size), at: time.Unix(1000, 0)}
	rand.NewChaCha8([32]byte{1}).Read(h.disk)
	d := newDevice([]serve.Disk{{Name: "d", FD: windowFD, Size: size}})
	d.now = func() time.Time { return h.at }
	d.alone, d.devIO = h.do, h.do
	h.d, h.buffers = d, map[uint64][]byte{}
	w := d.windows[windowFD]
	w.mapPart = func(fd int32, offset, n uint64) ([]byte, error) {
		if h.refuse || fd != windowFD {
			return nil, errors.New("refused")
		}
		h.maps++
		return h.disk[offset:][:n:n], nil
	}
	w.unmap = func([]byte) error { h.unmaps++; return nil }
	return d, h
}

// op returns a read of n bytes into two new segments.
func (h *hostSide) op(off, n uint64) serve.Op {
	half := n / 2
	b := make([]byte, n)
	segs := [][]byte{b[:half], b[half:]}
	for _, s := range segs {
		h.buffers[guest.Segment(s).Addr] = s
	}
	return serve.Op{FD: windowFD, Kind: abi.DevRead, Offset: off, Length: n, Segs: segs}
}

// read performs one read alone, checks the data and reports whether the host was asked.
func (h *hostSide) read(t *testing.T, d *device, off, n uint64) (asked bool) {
	t.Helper()
	before := h.calls
	ops := []serve.Op{h.op(off, n)}
	d.Do(ops)
	if ops[0].Result != int64(n) || !bytes.Equal(bytes.Join(ops[0].Segs, nil), h.disk[off:off+n]) {
		t.Fatalf("read of %d bytes at %d: result %d or wrong data", n, off, ops[0].Result)
	}
	return h.calls > before
}

// heat makes the device map the first part.
func (h *hostSide) heat(t *testing.T, d *device) {
	t.Helper()
	for range mapAfter + 1 {
		h.read(t, d, 0, blockBytes)
	}
	if h.maps != 1 {
		t.Fatalf("%d mappings", h.maps)
	}
}

func TestWindowServesKnownBlocks(t *testing.T) {
	d, h := windowed(partBytes)
	for i := range mapAfter {
		if !h.read(t, d, 0, 512) {
			t.Fatalf("read %d did not ask the host", i)
		}
	}
	if h.read(t, d, 0, 512) || h.maps != 1 {
		t.Error("a hot block was read by the host")
	}
	for _, tc := range []struct {
		off, n uint64
		asked  bool
	}{
		{4096, 4096, true}, {4096, 4096, false}, // the second time it is known
		{8192 + 512, 1024, true}, {8192, 4096, false},
		{12288 - 512, 1024, true},    // one of its blocks is not known
		{12288 - 512, 1024, false},   // now it is
		{40960, maxCopy, true},       //
		{40960, maxCopy, true},       // four accesses cost more than an exit
		{40960, maxCopy + 512, true}, // too long
		{40960, maxCopy + 512, true}, //
		{partBytes - 512, 512, true}, //
		{partBytes - 512, 512, false},
	} {
		if got := h.read(t, d, tc.off, tc.n); got != tc.asked {
			t.Errorf("read of %d bytes at %d: host asked: %t", tc.n, tc.off, got)
		}
	}
}

// In company first accesses are the host's, until they have paid.
func TestWindowCompany(t *testing.T) {
	d, h := windowed(partBytes)
	h.heat(t, d)
	var ops []serve.Op
	for i := range uint64(8) {
		ops = append(ops, h.op((i+1)*blockBytes, blockBytes))
	}
	for i := range payOff {
		before := h.reqs
		d.Do(ops)
		if h.reqs-before != len(ops) {
			t.Fatalf("round %d: %d of %d reads by the host", i, h.reqs-before, len(ops))
		}
	}
	before := h.calls
	d.Do(ops)
	d.Do(ops)
	if h.calls != before {
		t.Error("blocks that were read often are read by the host")
	}
	// A write in the same batch goes to the host, hot reads do not.
	w := h.op(0, 512)
	w.Kind = abi.DevWrite
	copy(w.Segs[0], "abcd")
	before = h.reqs
	d.Do(append(ops, w))
	if h.reqs != before+1 || string(h.disk[:4]) != "abcd" {
		t.Errorf("%d requests, %q", h.reqs-before, h.disk[:4])
	}
}

func TestWindowForgets(t *testing.T) {
	d, h := windowed(partBytes)
	h.heat(t, d)
	h.read(t, d, 4096, 4096)
	h.at = h.at.Add(cooling)
	if h.read(t, d, 0, 512) {
		t.Error("a block that was read since the last cooling is forgotten")
	}
	h.at = h.at.Add(cooling)
	if h.read(t, d, 0, 512) {
		t.Error("a block that was read since the last cooling is forgotten")
	}
	if !h.read(t, d, 4096, 4096) {
		t.Error("a block that was not read for two times the cooling is not forgotten")
	}
}

func TestWindowRefused(t *testing.T) {
	d, h := windowed(partBytes)
	h.refuse = true
	for range 2 * mapAfter {
		if !h.read(t, d, 0, 4096) {
			t.Fatal("read without host and mapping")
		}
	}
	if w := d.windows[windowFD]; !w.deny || len(w.parts) != 0 {
		t.Errorf("%+v", w.deny)
	}
}

func TestWindowBounds(t *testing.T) {
	// The last part is short, and the last block too.
	const size = partBytes + 4096 + 512
	d, h := windowed(size)
	for range mapAfter + 1 {
		h.read(t, d, size-1024, 1024)
	}
	if h.maps != 1 || h.read(t, d, size-512, 512) {
		t.Error("the end of the device is not read through the mapping")
	}
	// Across two parts.
	for range mapAfter + 2 {
		if !h.read(t, d, partBytes-512, 1024) {
			t.Fatal("a read across two mappings")
		}
	}
}

func TestWindowKeepsFewParts(t *testing.T) {
	d, h := windowed(partBytes)
	w := d.windows[windowFD]
	w.size = (maxParts + 10) * partBytes
	h.heat(t, d)
	now := h.at
	for n := uint64(1); n < maxParts+10; n++ {
		op := h.op(n*partBytes, 512)
		if _, ok := w.look(&op, now); ok {
			t.Fatal("an unknown block can be read")
		}
		if len(w.parts) > maxParts {
			t.Fatalf("%d parts", len(w.parts))
		}
	}
	if h.unmaps != 1 || w.parts[0] != nil {
		t.Errorf("%d unmapped; the oldest part is kept: %t", h.unmaps, w.parts[0] != nil)
	}
}

// A host that did not perform a batch ends the driver: nobody gets an error for what the next instance can do.
func TestDeviceHostFails(t *testing.T) {
	d, h := windowed(partBytes)
	h.heat(t, d)
	h.fail = errors.New("gone")
	for _, ops := range [][]serve.Op{
		{h.op(0, 4096), h.op(8192, 4096)},
		{{FD: windowFD, Kind: abi.DevFlush}},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("went on without the host")
				}
			}()
			d.Do(ops)
		}()
	}
	d.Do([]serve.Op{h.op(0, 4096)})
	d.Do(nil)
}

// Whatever the mix, reads return what was written last.
func TestDeviceModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	const size = 64 * blockBytes
	d, h := windowed(size)
	model := bytes.Clone(h.disk)
	for range 5000 {
		clear(h.buffers)
		h.at = h.at.Add(time.Duration(rnd.IntN(10)) * time.Millisecond)
		var ops []serve.Op
		for range 1 + rnd.IntN(6) {
			n := 512 * uint64(1+rnd.IntN(40))
			op := h.op(512*rnd.Uint64N((size-n)/512+1), n)
			if rnd.IntN(8) == 0 && len(ops) == 0 {
				op.Kind = abi.DevWrite
				for _, s := range op.Segs {
					for i := range s {
						s[i] = byte(rnd.Uint32())
					}
				}
				copy(model[op.Offset:], bytes.Join(op.Segs, nil))
				ops = append(ops, op)
				break
			}
			ops = append(ops, op)
		}
		d.Do(ops)
		for _, op := range ops {
			if op.Result != int64(op.Length) || !bytes.Equal(bytes.Join(op.Segs, nil), model[op.Offset:][:op.Length]) {
				t.Fatalf("%v of %d bytes at %d: result %d or wrong data", op.Kind, op.Length, op.Offset, op.Result)
			}
		}
	}
	if h.maps != 1 {
		t.Errorf("%d mappings", h.maps)
	}
}

func TestDeviceDoesNotAllocate(t *testing.T) {
	d, h := windowed(partBytes)
	h.heat(t, d)
	ops := []serve.Op{h.op(0, 4096), h.op(4096, 65536)}
	d.alone = func(reqs []abi.DevReq) (int, error) { return len(reqs), nil }
	if n := testing.AllocsPerRun(100, func() { d.Do(ops) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What a mapping cannot read any more, since somebody has cut off the file, the host is asked for, which says that it cannot either; the rest goes on.
func TestWindowFault(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	d, h := windowed(partBytes)
	f, err := os.CreateTemp(t.TempDir(), "")
	if err == nil {
		defer f.Close()
		err = f.Truncate(partBytes)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.disk, err = unix.Mmap(int(f.Fd()), 0, partBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(h.disk)
	h.heat(t, d)
	h.read(t, d, 0, blockBytes)
	for _, off := range []uint64{4 * blockBytes, 5 * blockBytes} {
		for range payOff + 1 {
			h.read(t, d, off, blockBytes)
		}
	}
	if err := f.Truncate(2 * blockBytes); err != nil {
		t.Fatal(err)
	}
	d.alone = func(reqs []abi.DevReq) (int, error) {
		h.reqs += len(reqs)
		for i := range reqs {
			reqs[i].Result = -int64(unix.EIO)
		}
		return len(reqs), nil
	}
	before := h.reqs
	ops := []serve.Op{h.op(0, blockBytes), h.op(4*blockBytes, blockBytes), h.op(5*blockBytes, blockBytes)}
	d.Do(ops)
	if ops[0].Result != blockBytes || ops[1].Result != -int64(unix.EIO) || ops[2].Result != -int64(unix.EIO) || h.reqs-before != 2 || h.unmaps != 1 {
		t.Errorf("results %d, %d, %d; the host was asked %d times; %d mappings dropped", ops[0].Result, ops[1].Result, ops[2].Result, h.reqs-before, h.unmaps)
	}
}
