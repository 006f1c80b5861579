package qemu

import (
	"bytes"
	"sync"
	"time"
)

// Bounds of a Log.
const (
	logEntries   = 512
	logEntrySize = 2 << 10
)

// Who said it.
const (
	toQEMU   = "->"
	fromQEMU = "<-"
)

// Entry is one line of a conversation with QEMU.
type Entry struct {
	Time time.Time
	From string // "->" to QEMU, "<-" from it
	Text string // at most 2 KiB, printable; what was longer ends in "…"
}

// Log keeps the last 512 lines of a conversation. The zero value is empty and ready. It is safe for concurrent use.
type Log struct {
	mu   sync.Mutex
	ring []Entry
	next int
}

func (l *Log) add(from string, text []byte) {
	short := printable(text[:min(len(text), logEntrySize)])
	if len(text) > logEntrySize {
		short += "…"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := Entry{time.Now(), from, short}
	if len(l.ring) < logEntries {
		l.ring = append(l.ring, e)
		return
	}
	l.ring[l.next] = e
	l.next = (l.next + 1) % logEntries
}

// Entries returns the lines, the oldest first.
func (l *Log) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append(append([]Entry(nil), l.ring[l.next:]...), l.ring[:l.next]...)
}

// printable returns text for a terminal: control characters, and what is not UTF-8, become '?'.
func printable(text []byte) string {
	return string(bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\ufffd' {
			return '?'
		}
		return r
	}, text))
}
