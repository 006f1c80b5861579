package serve

import (
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// MaxRanges is the largest number of ranges in one discard or write-zeroes request.
const MaxRanges = 16

// work is one request from the moment it is taken until it is completed.
type work struct {
	q      *queue
	chain  ring.Chain
	req    virtioblk.Request
	ranges [MaxRanges]virtioblk.Range

	first, count int  // its part of the batch's operations
	flush        bool // a flush of the device precedes completion
	status       byte

	// A read or write that is performed in parts. It is its queue's own until then.
	parted bool
	whole  Op       // what is left of it, and Length of all of it
	part   [][]byte // segments of the part at hand
	done   uint64   // bytes, the part at hand included
	since  int64    // when it was taken, ns
}

// limits is what a request is checked against.
type limits struct {
	sectors  uint64
	readOnly bool
	fd       int32
	id       [virtioblk.IDBytes]byte
	refuse   bool // every request fails
	durable  bool // every write is flushed before it completes: the client did not negotiate flushes
}

// plan checks the request in w and appends the operations that it needs to ops, which has room for MaxRanges.
// A request that is refused, or needs no device, gets its status here. The client's numbers are read once.
func (w *work) plan(l *limits, ops []Op) []Op {
	w.first, w.count, w.flush, w.status = len(ops), 0, false, virtioblk.StatusOK
	r := &w.req
	if l.refuse {
		w.status = virtioblk.StatusIOErr
		return ops
	}
	switch r.Type {
	case virtioblk.TypeIn, virtioblk.TypeOut:
		write := r.Type == virtioblk.TypeOut
		sectors := uint64(r.DataBytes) / virtioblk.SectorSize
		if r.DataBytes%virtioblk.SectorSize != 0 || !l.holds(r.Sector, sectors) ||
			write && l.readOnly || len(r.Data) > abi.MaxDevSegs {
			w.status = virtioblk.StatusIOErr
			return ops
		}
		if sectors == 0 {
			return ops
		}
		kind := abi.DevRead
		if write {
			kind, w.flush = abi.DevWrite, l.durable
		}
		ops = append(ops, Op{
			FD: l.fd, Kind: kind, Offset: r.Sector * virtioblk.SectorSize, Length: uint64(r.DataBytes), Segs: r.Data,
		})
	case virtioblk.TypeFlush:
		w.flush = true
	case virtioblk.TypeGetID:
		n := 0
		for _, s := range r.Data {
			n += copy(s, l.id[n:])
		}
		if n < virtioblk.IDBytes || r.DataBytes != virtioblk.IDBytes {
			w.status = virtioblk.StatusIOErr
		}
	case virtioblk.TypeDiscard:
		ops = w.planRanges(l, ops, abi.DevDiscard, 0)
	case virtioblk.TypeWriteZeroes:
		ops = w.planRanges(l, ops, abi.DevWriteZeroes, virtioblk.RangeUnmap)
	default:
		w.status = virtioblk.StatusUnsupported
	}
	w.count = len(ops) - w.first
	return ops
}

// planRanges appends one operation a range. Flags outside allowed are not supported.
func (w *work) planRanges(l *limits, ops []Op, kind abi.DevOp, allowed uint32) []Op {
	n := int(w.req.DataBytes / virtioblk.RangeBytes)
	if w.req.DataBytes%virtioblk.RangeBytes != 0 || n == 0 || n > MaxRanges || l.readOnly {
		w.status = virtioblk.StatusIOErr
		return ops
	}
	for i := range n {
		var b [virtioblk.RangeBytes]byte
		copyAt(b[:], w.req.Data, uint32(i)*virtioblk.RangeBytes)
		w.ranges[i] = virtioblk.DecodeRange(b[:])
		if w.ranges[i].Flags&^allowed != 0 {
			w.status = virtioblk.StatusUnsupported
			return ops
		}
		if !l.holds(w.ranges[i].Sector, uint64(w.ranges[i].Count)) {
			w.status = virtioblk.StatusIOErr
			return ops
		}
	}
	for _, r := range w.ranges[:n] {
		if r.Count == 0 {
			continue
		}
		op := Op{
			FD: l.fd, Kind: kind,
			Offset: r.Sector * virtioblk.SectorSize, Length: uint64(r.Count) * virtioblk.SectorSize,
		}
		if r.Flags&virtioblk.RangeUnmap != 0 {
			op.Flags = abi.DevMayUnmap
		}
		ops = append(ops, op)
	}
	w.flush = l.durable
	return ops
}

// next appends the operation on the next n bytes, at least one, of a request that is performed in parts, and returns how many there are.
func (w *work) next(ops []Op, n uint64) ([]Op, uint64) {
	op := w.whole
	n = min(n, op.Length-w.done)
	w.part, w.whole.Segs = ring.Cut(w.part[:0], w.whole.Segs, uint32(n))
	op.Offset, op.Length, op.Segs = op.Offset+w.done, n, w.part
	w.done += n
	w.first, w.count = len(ops), 1
	return append(ops, op), n
}

// divide has a read or write, whose one operation is the last of ops, be performed in parts, of which none is in ops yet.
func (w *work) divide(ops []Op, now int64) []Op {
	w.parted, w.whole, w.done, w.since = true, ops[len(ops)-1], 0, now
	return ops[:len(ops)-1]
}

// unfinished reports whether parts are left after the one at hand, which went well.
func (w *work) unfinished() bool {
	return w.parted && w.status == virtioblk.StatusOK && w.done < w.whole.Length
}

// holds reports whether the disk holds sectors [first, first+n), without overflow.
func (l *limits) holds(first, n uint64) bool { return first <= l.sectors && n <= l.sectors-first }

// settle takes the outcome of the request's operations into its status.
func (w *work) settle(ops []Op) {
	for i := range ops[w.first : w.first+w.count] {
		op := &ops[w.first+i]
		switch {
		case op.Result == -eopnotsupp:
			w.status = virtioblk.StatusUnsupported
			return
		case op.Result < 0:
			w.status = virtioblk.StatusIOErr
			return
		case (op.Kind == abi.DevRead || op.Kind == abi.DevWrite) && uint64(op.Result) != op.Length:
			w.status = virtioblk.StatusIOErr // the device ended early: it shrank, or is full
			return
		}
	}
}

// eopnotsupp is Linux's EOPNOTSUPP, the same on every architecture that Grail runs on.
const eopnotsupp = 95

// copyAt copies from the concatenation of segs, from offset off on, into p.
func copyAt(p []byte, segs [][]byte, off uint32) {
	c := ring.Chain{Readable: segs}
	c.ReadAt(p, off)
}
