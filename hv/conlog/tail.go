package conlog

import "bytes"

// tailLine bounds a console line that is kept, in bytes.
const tailLine = 256

// tail keeps the last lines of a stream. Its memory is fixed.
type tail struct {
	ring [][]byte // capacity tailLine each
	next int      // where the next complete line goes
	full bool
	cur  []byte // the line being written
	said []byte // the last line that begins as one of lastWords
}

// lastWords are how runtimes begin to say what their program dies of: Go's and C++'s. Pages of stacks may follow.
var lastWords = [][]byte{[]byte("fatal error: "), []byte("panic: "), []byte("terminate called ")}

func newTail(lines int) tail {
	t := tail{ring: make([][]byte, lines), cur: make([]byte, 0, tailLine)}
	return t
}

// write appends b. Of a large b only the end that can matter is looked at.
func (t *tail) write(b []byte) {
	if most := len(t.ring) * tailLine * 2; len(b) > most {
		b = b[len(b)-most:]
		t.cur = t.cur[:0]
	}
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		line := b
		if i >= 0 {
			line = b[:i]
		}
		t.cur = append(t.cur, line[:min(len(line), tailLine-len(t.cur))]...)
		if i < 0 {
			return
		}
		b = b[i+1:]
		for _, w := range lastWords {
			if bytes.HasPrefix(t.cur, w) {
				t.said = append(t.said[:0], t.cur...)
			}
		}
		t.cur, t.ring[t.next] = t.ring[t.next][:0], t.cur
		if t.cur == nil {
			t.cur = make([]byte, 0, tailLine)
		}
		if t.next++; t.next == len(t.ring) {
			t.next, t.full = 0, true
		}
	}
}

// lines returns the lines kept, oldest first, with what a terminal might obey replaced by dots.
func (t *tail) lines() []string {
	var out []string
	if t.full {
		for _, l := range t.ring[t.next:] {
			out = append(out, printable(l))
		}
	}
	for _, l := range t.ring[:t.next] {
		out = append(out, printable(l))
	}
	if len(t.cur) > 0 {
		out = append(out, printable(t.cur))
	}
	if n := len(out) - len(t.ring); n > 0 {
		out = out[n:]
	}
	return out
}

func printable(b []byte) string {
	b = bytes.TrimSuffix(b, []byte{'\r'})
	return string(bytes.Map(func(r rune) rune {
		if r == '\t' || r >= 0x20 && r < 0x7f || r >= 0xa0 && r != 0xfffd {
			return r
		}
		return '.'
	}, b))
}
