package logfile

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"time"
)

// Writer writes a file that is mapped. It is not safe for concurrent use.
type Writer struct {
	data       []byte
	run        uint64
	tail, head uint64
	tailW      *atomic.Uint64
	headW      *atomic.Uint64
	record     [recordBytes]byte
}

// NewWriter returns a writer of the file that mem maps, for the output of a run, and where in that output the file ends: there the writer goes
// on. A file that is damaged is begun anew. Errors: ErrFormat, for memory that cannot be a file.
func NewWriter(mem []byte, run uint64, now time.Time) (w *Writer, pos uint64, err error) {
	if err := checkSize(int64(len(mem))); err != nil {
		return nil, 0, err
	}
	if !aligned(mem) {
		return nil, 0, fmt.Errorf("%w: odd address", ErrFormat)
	}
	w = &Writer{data: mem[headerBytes:], run: run, tailW: word(mem, tailOffset), headW: word(mem, headOffset)}
	was := word(mem, magicOffset).Load()
	last, ok := w.walk()
	if was != magic || !ok {
		w.tail, w.head = 0, 0
		w.tailW.Store(0)
		w.headW.Store(0)
		word(mem, magicOffset).Store(magic)
		if was != 0 {
			w.append(&Record{Kind: Damaged, Time: now, Run: run})
		}
		last = Record{}
	}
	if last.Kind == 0 || last.Run != run {
		w.append(&Record{Kind: Start, Time: now, Run: run})
		return w, 0, nil
	}
	return w, last.Pos, nil
}

// walk checks what is in the file and returns its last record, if there is one.
func (w *Writer) walk() (last Record, ok bool) {
	w.tail, w.head = w.tailW.Load(), w.headW.Load()
	if !valid(w.tail, w.head, uint64(len(w.data))) {
		return last, false
	}
	for at := w.tail; at < w.head; {
		w.load(at)
		rec, size, _, err := head(w.record[:])
		if err != nil || size > w.head-at {
			return last, false
		}
		last = rec
		at += size
	}
	return last, true
}

// load copies the numbers of the record at position at.
func (w *Writer) load(at uint64) {
	from := at % uint64(len(w.data))
	copy(w.record[copy(w.record[:], w.data[from:]):], w.data)
}

// Write appends output that was written at a time and ends at position pos of the run's output.
func (w *Writer) Write(b []byte, at time.Time, pos uint64) {
	pos -= uint64(len(b))
	for len(b) > 0 {
		n := min(len(b), MaxText)
		if i := bytes.IndexByte(b[:n], '\n'); i >= 0 {
			n = i + 1
		}
		pos += uint64(n)
		w.append(&Record{Kind: Text, Time: at, Run: w.run, Pos: pos, Text: b[:n]})
		b = b[n:]
	}
}

// Gap says that count bytes of output before position pos are missing: Lost, or Limited.
func (w *Writer) Gap(kind Kind, count uint64, at time.Time, pos uint64) {
	w.append(&Record{Kind: kind, Time: at, Run: w.run, Pos: pos, Count: count})
}

// append writes one record, over the oldest ones. At any moment the file is whole.
func (w *Writer) append(r *Record) {
	size := sizeOf(len(r.Text))
	for w.head+size-w.tail > uint64(len(w.data)) {
		w.drop()
	}
	put(w.record[:], r)
	w.store(w.head, w.record[:])
	w.store(w.head+recordBytes, r.Text)
	w.head += size
	w.headW.Store(w.head)
}

// drop gives up the oldest record.
func (w *Writer) drop() {
	w.load(w.tail)
	_, size, _, err := head(w.record[:])
	if w.tail += size; err != nil || w.tail > w.head {
		w.tail = w.head // somebody else has written to the file
	}
	// Before its bytes are overwritten; a reader looks at tail after it has read them.
	w.tailW.Store(w.tail)
}

func (w *Writer) store(at uint64, b []byte) {
	from := at % uint64(len(w.data))
	copy(w.data, b[copy(w.data[from:], b):])
}
