package logfile

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
)

// Reader reads a file that may be written meanwhile. It is not safe for concurrent use.
type Reader struct {
	f       io.ReaderAt
	size    uint64 // of the records' part
	pos     uint64 // of the next record to load
	loaded  bool   // something was loaded already
	skipped bool   // records were overwritten that had not been loaded
	buf     []byte
}

// NewReader returns a reader of the file f, which has size bytes, from its oldest record on. Errors: ErrFormat.
func NewReader(f io.ReaderAt, size int64) (*Reader, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	return &Reader{f: f, size: uint64(size - headerBytes)}, nil
}

// bounds reads where the oldest record begins and the newest one ends; equal numbers if there is none.
func (r *Reader) bounds() (tail, head uint64, err error) {
	var b [24]byte
	if _, err := r.f.ReadAt(b[:], 0); err != nil {
		return 0, 0, fmt.Errorf("logfile: %w", err)
	}
	tail, head = binary.LittleEndian.Uint64(b[tailOffset:]), binary.LittleEndian.Uint64(b[headOffset:])
	switch m := binary.LittleEndian.Uint64(b[magicOffset:]); {
	case m == 0:
		return 0, 0, nil // not begun
	case m != magic || !valid(tail, head, r.size):
		return 0, 0, fmt.Errorf("%w: records from %d to %d", ErrFormat, tail, head)
	}
	return tail, head, nil
}

// tries is how often a load is begun again because the writer was faster.
const tries = 20

// Load reads the records that have come since the last Load, for Records. Errors: ErrFormat, those of reading.
func (r *Reader) Load() error {
	r.buf, r.skipped = r.buf[:0], false
	for range tries {
		tail, head, err := r.bounds()
		if err != nil {
			return err
		}
		if r.loaded && (head < r.pos || tail > r.pos) {
			r.skipped = true
		}
		if !r.loaded || r.skipped {
			r.pos = tail
		}
		if err := r.copy(head - r.pos); err != nil {
			return err
		}
		now, _, err := r.bounds()
		if err != nil {
			return err
		}
		if now <= r.pos {
			r.pos, r.loaded = head, true
			return nil
		}
	}
	return fmt.Errorf("%w: it is written faster than it can be read", ErrFormat)
}

// copy reads the next n bytes of records.
func (r *Reader) copy(n uint64) error {
	if uint64(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	r.buf = r.buf[:n]
	from := r.pos % r.size
	first := min(n, r.size-from)
	if _, err := r.f.ReadAt(r.buf[:first], int64(headerBytes+from)); err != nil {
		return fmt.Errorf("logfile: %w", err)
	}
	if _, err := r.f.ReadAt(r.buf[first:], headerBytes); err != nil {
		return fmt.Errorf("logfile: %w", err)
	}
	return nil
}

// Skipped reports whether records were overwritten between the last two calls of Load.
func (r *Reader) Skipped() bool { return r.skipped }

// Records returns the loaded records, oldest first, up to the first one that is damaged, for which there is one of kind Damaged. Texts are
// valid until the next Load.
func (r *Reader) Records() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for b := r.buf; len(b) > 0; {
			rec, size, err := parse(b)
			if err != nil {
				yield(Record{Kind: Damaged})
				return
			}
			if !yield(rec) {
				return
			}
			b = b[size:]
		}
	}
}
