package conlog

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	var l limiter
	at := time.Unix(1000, 0)
	if n, _ := l.admit(FloodBurst+5, at); n != FloodBurst {
		t.Errorf("a burst of %d", n)
	}
	if n, _ := l.admit(10, at.Add(time.Millisecond)); n != 0 {
		t.Errorf("%d bytes right after a drop", n)
	}
	n, note := l.admit(10, at.Add(2*time.Second))
	if n != 10 || note != "\n[grail: 15 bytes of output dropped]\n" {
		t.Errorf("%d bytes, note %q", n, note)
	}
	if _, note := l.admit(10, at.Add(2*time.Second)); note != "" {
		t.Errorf("note %q again", note)
	}
}

// tail against a dumb version.
func TestTail(t *testing.T) {
	var all bytes.Buffer
	k := newTail(5)
	for i := range 200 {
		s := strings.Repeat(fmt.Sprint(i, " "), i%100)
		if i%3 != 0 {
			s += "\n"
		}
		all.WriteString(s)
		k.write([]byte(s))
		want := strings.Split(strings.TrimSuffix(all.String(), "\n"), "\n")
		if all.Len() == 0 {
			want = nil
		}
		want = want[max(0, len(want)-5):]
		got := k.lines()
		if len(got) != len(want) {
			t.Fatalf("%d lines, want %d", len(got), len(want))
		}
		for j := range want {
			if got[j] != want[j][:min(len(want[j]), tailLine)] {
				t.Fatalf("after %d: line %d is %q, want %q", i, j, got[j], want[j])
			}
		}
	}
	k = newTail(2)
	k.write([]byte(strings.Repeat("x\n", 10000) + "last\n"))
	if got := k.lines(); len(got) != 2 || got[1] != "last" {
		t.Errorf("%q", got)
	}
	k.write([]byte("\x1b[2J\x00\xff\tü\r\n"))
	if got := k.lines(); got[1] != ".[2J..\tü" {
		t.Errorf("%q", got[1])
	}
}
