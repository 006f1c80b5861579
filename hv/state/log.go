package state

import (
	"encoding/binary"
	"fmt"
)

// Taken says what a successor took over.
type Taken struct {
	Items   int  // of the newest checkpoint
	Records int  // that followed it
	Foreign bool // the state is one of another version, and was dropped
}

// Log is the writer of a region. It belongs to one goroutine. A nil Log keeps nothing.
type Log struct {
	mem                  []byte
	version              uint32
	generation, sequence uint64
	present              int // part of the newest checkpoint
	end                  int // of the journal
	snapshot             func(put Put)
	store                func(dst, src []byte) // copies; tests die there
	leftOut              int
	scratch              [checkpointHeader]byte
}

// Put adds an item to a checkpoint. It reports false when there is no room for it: the item is left out.
type Put func(kind uint16, data []byte) bool

// Open takes a region over, whose contents have a version of their own: replay is called with what the predecessor kept, the items of its newest
// checkpoint and then the records that followed, in order. Data is valid during the call. A state of another version, or none, makes an
// empty region. Nothing may be appended before Start. Errors: ErrSize.
func Open(mem []byte, version uint32, replay func(kind uint16, data []byte)) (l *Log, t Taken, err error) {
	if err := checkSize(len(mem)); err != nil {
		return nil, t, err
	}
	l = &Log{mem: mem, version: version, present: partSecond, store: func(dst, src []byte) { copy(dst, src) }}
	c, at, ok := newest(mem)
	if !ok || c.version != version {
		empty(mem)
		// Whoever compares regions is to find the new state newer than the one that was dropped.
		l.generation, l.sequence, t.Foreign = c.generation, c.sequence, ok
		return l, t, nil
	}
	t.Items = c.each(replay)
	t.Records, _ = eachRecord(part(mem, partJournal), &c, replay)
	// The other checkpoint may have been a newer one, and its records be in the journal: its number is not used again.
	l.generation, l.sequence, l.present = c.generation+1, c.sequence+uint64(t.Records), at
	return l, t, nil
}

// empty clears a region. One that was never written to is not touched more than it takes to see that: each page would be a fault.
func empty(mem []byte) {
	for i := range parts {
		for _, b := range part(mem, i)[:checkpointHeader] {
			if b != 0 {
				clear(mem)
				return
			}
		}
	}
}

// Start writes the first checkpoint, after which the Log can be appended to. snapshot is called now and whenever the journal is full: it puts all
// that a successor is to know, the most valuable first.
func (l *Log) Start(snapshot func(put Put)) {
	if l == nil {
		return
	}
	l.snapshot = snapshot
	l.checkpoint()
}

// Append adds a record, after the owner's own state has changed as the record says: when the journal is full, the record is part of a
// snapshot instead. It neither allocates nor blocks, unless snapshot does. More than MaxRecord bytes, or than a quarter of the region holds, are our own bug.
func (l *Log) Append(kind uint16, data []byte) {
	if l == nil {
		return
	}
	if l.snapshot == nil {
		panic("state: Append before Start")
	}
	n := recordHeader + len(data)
	b := part(l.mem, partJournal)
	if len(data) > MaxRecord || n > len(b) {
		panic(fmt.Sprintf("state: record of %d bytes", len(data)))
	}
	if n > len(b)-l.end {
		l.checkpoint()
		return
	}
	b = b[l.end : l.end+n]
	le := binary.LittleEndian
	h := l.scratch[:recordHeader]
	le.PutUint16(h[4:], kind)
	le.PutUint16(h[6:], uint16(len(data)))
	le.PutUint64(h[8:], l.generation)
	le.PutUint64(h[16:], l.sequence+1)
	l.store(b[recordHeader:], data)
	l.store(b[4:recordHeader], h[4:])
	le.PutUint32(h, checksum(b[4:]))
	l.store(b[:4], h[:4])
	l.sequence++
	l.end = min(l.end+aligned(n), len(l.mem)/parts)
}

// checkpoint writes the whole state to the older checkpoint's place and starts the journal again.
func (l *Log) checkpoint() {
	to := partFirst + partSecond - l.present
	b := part(l.mem, to)
	le := binary.LittleEndian
	end := checkpointHeader
	h := l.scratch[:]
	clear(h)
	l.store(b[:8], h[:8]) // it is not valid while it is written
	l.leftOut = 0
	l.snapshot(func(kind uint16, data []byte) bool {
		if len(data) > MaxRecord || aligned(end+itemHeader+len(data)) > len(b) {
			l.leftOut++
			return false
		}
		head := l.scratch[:itemHeader]
		le.PutUint16(head, kind)
		le.PutUint16(head[2:], uint16(len(data)))
		le.PutUint32(head[4:], 0)
		l.store(b[end:], head)
		l.store(b[end+itemHeader:], data)
		end = aligned(end + itemHeader + len(data))
		return true
	})
	le.PutUint32(h[4:], magic)
	le.PutUint32(h[8:], l.version)
	le.PutUint32(h[12:], uint32(end-checkpointHeader))
	le.PutUint64(h[16:], l.generation+1)
	le.PutUint64(h[24:], l.sequence)
	l.store(b[4:checkpointHeader], h[4:])
	le.PutUint32(h, checksum(b[4:end]))
	l.store(b[:4], h[:4])
	l.generation++
	l.present, l.end = to, 0
}

// LeftOut returns how many items the last checkpoint had no room for.
func (l *Log) LeftOut() int {
	if l == nil {
		return 0
	}
	return l.leftOut
}

// Words returns the region's words, to be changed in place.
func (l *Log) Words() []uint64 {
	if l == nil {
		return nil
	}
	return words(part(l.mem, partWords))
}
