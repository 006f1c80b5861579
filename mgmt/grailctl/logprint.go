package main

import (
	"bytes"
	"io"
	"os"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// stampForm is RFC 3339 with milliseconds.
const stampForm = "2006-01-02T15:04:05.000Z07:00"

// logPrinter prints lines of a log, also such as come in pieces.
type logPrinter struct {
	w      io.Writer
	stamps bool
	clean  bool // control characters become dots
	fresh  bool // the last line is complete
	from   int  // where the last line came from
}

func (p *logPrinter) print(l logLine) error {
	var b []byte
	if !p.fresh && (l.mark || l.from != p.from) {
		b = append(b, '\n')
		p.fresh = true
	}
	if p.fresh && p.stamps {
		if l.at.IsZero() {
			b = append(b, "- "...)
		} else {
			b = append(l.at.AppendFormat(b, stampForm), ' ')
		}
	}
	if p.clean {
		b = appendClean(b, l.text)
	} else {
		b = append(b, l.text...)
	}
	p.fresh, p.from = bytes.HasSuffix(l.text, []byte{'\n'}), l.from
	_, err := p.w.Write(b)
	return err
}

// appendClean appends text with what a terminal might obey replaced by dots.
func appendClean(b, text []byte) []byte {
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		switch {
		case r == '\n' || r == '\t' || r >= 0x20 && r < 0x7f || r >= 0xa0 && (r != utf8.RuneError || n > 1):
			b = append(b, text[:n]...)
		case r == '\r' && bytes.HasPrefix(text[n:], []byte{'\n'}):
		default:
			b = append(b, '.')
		}
		text = text[n:]
	}
	return b
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
