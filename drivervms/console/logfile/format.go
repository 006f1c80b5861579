package logfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// A file is a page of numbers, and records in a ring. Position p of the records stands at headerBytes + p mod (the file's size - headerBytes).
// Numbers are little-endian.
const (
	// HeadOffset is where the position behind the newest record stands, a uint64; while it is less than the room for records, that much of the room is used.
	HeadOffset = 16
	// HeaderBytes is where the records begin.
	HeaderBytes = 4096

	magic       = 0x31474f4c434c5247 // "GRLCLOG1"
	magicOffset = 0
	tailOffset  = 8 // position of the oldest record
	headOffset  = HeadOffset
	headerBytes = HeaderBytes
)

// Bounds of a file, in bytes. It is a multiple of 4096 bytes long.
const (
	MinBytes = 4 * headerBytes
	MaxBytes = 64 << 20
)

// MaxText is the longest text of one record, in bytes. Longer lines are several records.
const MaxText = 2048

// Kind says what a record is.
type Kind uint32

// The kinds of records.
const (
	Text    Kind = iota + 1 // output: at most one line, which it ends if it holds a line feed, its last byte
	Lost                    // Count bytes were lost before the driver could read them
	Limited                 // Count bytes were dropped, because the VM printed too fast
	Start                   // another run of the VM begins
	Damaged                 // the log before this was damaged, and was given up
)

// Record is one record of a log.
type Record struct {
	Kind  Kind
	Time  time.Time // when the VM wrote it; zero if that is not known
	Run   uint64    // what wrote it: a number that no other run has
	Pos   uint64    // where in the run's output it ends, bytes
	Count uint64    // of kinds Lost and Limited
	Text  []byte    // of kind Text
}

// recordBytes is the size of a record without its text: length, kind, time, run, position, count.
const recordBytes = 40

// sizeOf returns the room that a record with n bytes of text takes.
func sizeOf(n int) uint64 { return recordBytes + uint64(n+7)&^7 }

// ErrFormat reports what is no log, or one that contradicts itself.
var ErrFormat = errors.New("logfile: not a log, or a damaged one")

// head takes the numbers of a record from b, of which all recordBytes are there, and returns the room that the record takes and the length of its text.
func head(b []byte) (r Record, size uint64, text int, err error) {
	n := binary.LittleEndian.Uint32(b)
	r = Record{Kind: Kind(binary.LittleEndian.Uint32(b[4:])), Run: binary.LittleEndian.Uint64(b[16:]),
		Pos: binary.LittleEndian.Uint64(b[24:]), Count: binary.LittleEndian.Uint64(b[32:])}
	if n > MaxText || r.Kind < Text || r.Kind > Damaged {
		return r, 0, 0, fmt.Errorf("%w: a record of kind %d with %d bytes", ErrFormat, r.Kind, n)
	}
	if at := int64(binary.LittleEndian.Uint64(b[8:])); at > 0 {
		r.Time = time.Unix(0, at)
	}
	return r, sizeOf(int(n)), int(n), nil
}

// parse takes the first record of b, and returns the room that it takes. The text is not copied.
func parse(b []byte) (r Record, size uint64, err error) {
	if len(b) < recordBytes {
		return r, 0, fmt.Errorf("%w: %d bytes of a record", ErrFormat, len(b))
	}
	r, size, n, err := head(b)
	if err != nil {
		return r, 0, err
	}
	if size > uint64(len(b)) {
		return r, 0, fmt.Errorf("%w: a record of %d bytes, of which there are %d", ErrFormat, size, len(b))
	}
	r.Text = b[recordBytes:][:n:n]
	return r, size, nil
}

// put writes r without its text to b.
func put(b []byte, r *Record) {
	binary.LittleEndian.PutUint32(b, uint32(len(r.Text)))
	binary.LittleEndian.PutUint32(b[4:], uint32(r.Kind))
	at := int64(0)
	if !r.Time.IsZero() {
		at = r.Time.UnixNano()
	}
	binary.LittleEndian.PutUint64(b[8:], uint64(at))
	binary.LittleEndian.PutUint64(b[16:], r.Run)
	binary.LittleEndian.PutUint64(b[24:], r.Pos)
	binary.LittleEndian.PutUint64(b[32:], r.Count)
}

// valid reports whether records can stand from tail to head, in room bytes. Positions do not come near their limit in a lifetime.
func valid(tail, head, room uint64) bool {
	return tail <= head && head-tail <= room && head < 1<<62 && tail%8 == 0 && head%8 == 0
}

// checkSize refuses sizes that a file cannot have.
func checkSize(n int64) error {
	if n < MinBytes || n > MaxBytes || n%headerBytes != 0 {
		return fmt.Errorf("%w: %d bytes", ErrFormat, n)
	}
	return nil
}
