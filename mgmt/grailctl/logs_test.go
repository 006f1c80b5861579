package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/console/logfile"
	"github.com/grailos/grail/mgmt/api"
)

// logRig is a log and what writes to it.
type logRig struct {
	t    *testing.T
	path string
	mem  []byte
	w    *logfile.Writer
	pos  uint64
	at   time.Time
}

func newLogRig(t *testing.T, name string, run uint64) *logRig {
	t.Helper()
	r := &logRig{t: t, path: filepath.Join(t.TempDir(), name), at: time.Unix(1000, 0)}
	f, err := os.Create(r.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 16); err != nil {
		t.Fatal(err)
	}
	if r.mem, err = unix.Mmap(int(f.Fd()), 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(r.mem) })
	r.run(run)
	return r
}

func (r *logRig) run(n uint64) {
	r.t.Helper()
	var err error
	if r.w, r.pos, err = logfile.NewWriter(r.mem, n, r.at); err != nil {
		r.t.Fatal(err)
	}
}

// say writes text a second later.
func (r *logRig) say(text string) {
	r.at = r.at.Add(time.Second)
	r.pos += uint64(len(text))
	r.w.Write([]byte(text), r.at, r.pos)
}

// printed reads what is new and prints it with p.
func printed(t *testing.T, s *logSource, l api.Log, p *logPrinter, o *logOptions) string {
	t.Helper()
	lines, err := s.read(l)
	if err != nil {
		t.Fatal(err)
	}
	if o != nil {
		lines = o.pick(lines)
	}
	var b bytes.Buffer
	p.w = &b
	for _, line := range lines {
		if err := p.print(line); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func expectText(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestLogRuns(t *testing.T) {
	r := newLogRig(t, "web.0", 5)
	l := api.Log{Name: "web", Files: []string{r.path, r.path + ".missing"}}
	r.say("first run\n")
	r.run(6)
	r.say("one\n")
	r.say("tw")
	r.say("o\nthree\nno end")
	all := func(o logOptions) string {
		s := newLogSource("web", o.all)
		defer s.close()
		return printed(t, s, l, &logPrinter{fresh: true, stamps: o.stamps}, &o)
	}
	for _, c := range []struct {
		what string
		o    logOptions
		want string
	}{
		{"the last run", logOptions{tail: -1}, "one\ntwo\nthree\nno end"},
		{"all runs", logOptions{tail: -1, all: true}, "[grail: a new run]\nfirst run\n[grail: a new run]\none\ntwo\nthree\nno end"},
		{"two lines", logOptions{tail: 2}, "three\nno end"},
		{"no line", logOptions{tail: 0}, ""},
		{"more lines than there are", logOptions{tail: 100}, "one\ntwo\nthree\nno end"},
		{"since", logOptions{tail: -1, since: time.Unix(1004, 0)}, "three\nno end"},
		{"since later", logOptions{tail: -1, since: time.Unix(2000, 0)}, ""},
		{"stamps", logOptions{tail: 2, stamps: true}, time.Unix(1004, 0).Format(stampForm) + " three\n" + time.Unix(1004, 0).Format(stampForm) + " no end"},
	} {
		expectText(t, c.what, all(c.o), c.want)
	}
	l.Driver = true
	expectText(t, "a driver's instances", all(logOptions{tail: -1}), "first run\none\ntwo\nthree\nno end")
}

func TestLogFollow(t *testing.T) {
	r := newLogRig(t, "web.0", 5)
	l := api.Log{Name: "web", Files: []string{r.path}, Live: true}
	s := newLogSource("web", false)
	defer s.close()
	p := &logPrinter{fresh: true}
	expectText(t, "nothing", printed(t, s, l, p, nil), "")
	r.say("one\nlog")
	expectText(t, "a prompt", printed(t, s, l, p, nil), "one\nlog")
	r.say("in: ")
	expectText(t, "the rest of it", printed(t, s, l, p, nil), "in: ")
	r.w.Gap(logfile.Lost, 10, r.at, r.pos)
	r.w.Gap(logfile.Limited, 20, r.at, r.pos)
	r.say("two\n")
	expectText(t, "gaps", printed(t, s, l, p, nil), "\n[grail: 10 bytes of output lost]\n[grail: 20 bytes of output dropped: too much at once]\ntwo\n")
	r.run(6)
	r.say("next run\n")
	expectText(t, "the next run", printed(t, s, l, p, nil), "next run\n")
	r.say(strings.Repeat(strings.Repeat("x", 99)+"\n", 1000))
	if got := printed(t, s, l, p, nil); !strings.HasPrefix(got, "[grail: the log went on faster than it was read]\nxxx") || len(got) > 1<<16 {
		t.Errorf("%.100q", got)
	}
}

// Two instances of a driver print at the same time: their lines are in order of time, and not mixed.
func TestLogOfDriver(t *testing.T) {
	a, b := newLogRig(t, "blk0.0", 5), newLogRig(t, "blk0.1", 6)
	l := api.Log{Name: "blk0", Driver: true, Live: true, Files: []string{a.path, b.path}}
	a.say("a1\n")
	b.at = a.at
	b.say("b1\n")
	a.at = b.at
	a.say("a2 ")
	s := newLogSource("blk0", false)
	defer s.close()
	p := &logPrinter{fresh: true}
	expectText(t, "both", printed(t, s, l, p, nil), "a1\nb1\na2 ")
	b.say("b2\n")
	expectText(t, "the other one", printed(t, s, l, p, nil), "\nb2\n")
}

func TestLogTexts(t *testing.T) {
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "0"), filepath.Join(dir, "1")}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(paths[0], "one\ntw")
	write(paths[1], "o\nthree\n")
	old := newLogRig(t, "web.0", 5)
	old.say("of an earlier run\n")
	l := api.Log{Name: "web", Texts: paths, Files: []string{old.path}}
	s := newLogSource("web", false)
	defer s.close()
	p := &logPrinter{fresh: true, stamps: true}
	expectText(t, "the last run", printed(t, s, l, p, &logOptions{tail: -1, since: time.Unix(5000, 0)}), "- one\n- two\n- three\n")
	write(paths[0], "four\n")
	expectText(t, "it went round", printed(t, s, l, p, nil), "- four\n")
	write(paths[0], "four\nfive\n")
	expectText(t, "it grew", printed(t, s, l, p, nil), "- five\n")
	every := newLogSource("web", true)
	defer every.close()
	expectText(t, "all runs", printed(t, every, l, &logPrinter{fresh: true}, nil), "[grail: a new run]\nof an earlier run\nfour\nfive\no\nthree\n")
}

func TestLogHostile(t *testing.T) {
	for what, content := range map[string][]byte{"short": make([]byte, 100), "no log": bytes.Repeat([]byte("x"), 1<<16), "huge": nil} {
		path := filepath.Join(t.TempDir(), "web.0")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if what == "huge" {
			if err := os.Truncate(path, 1<<40); err != nil {
				t.Fatal(err)
			}
		}
		s := newLogSource("web", false)
		if lines, err := s.read(api.Log{Files: []string{path}}); err == nil {
			t.Errorf("%s: %d lines", what, len(lines))
		}
		s.close()
	}
	r := newLogRig(t, "web.0", 5)
	r.say("good\n")
	r.say("bad\n")
	r.mem[4096+40+48+4] = 99 // the kind of the third record
	s := newLogSource("web", false)
	defer s.close()
	expectText(t, "a damaged record", printed(t, s, api.Log{Files: []string{r.path}}, &logPrinter{fresh: true}, nil), "good\n[grail: the log was damaged here]\n")
}

func TestLogClean(t *testing.T) {
	for text, want := range map[string]string{
		"plain\ttext\n":           "plain\ttext\n",
		"ü 漢 \u00a0":              "ü 漢 \u00a0",
		"\x1b[2J\x07\x00\x7f":     ".[2J...",
		"line\r\nover\rwritten\r": "line\nover.written.",
		"\u009b2J \xff\xc3":       ".2J ..",
		"\ufffd":                  "\ufffd",
	} {
		expectText(t, text, string(appendClean(nil, []byte(text))), want)
	}
}

func FuzzLogClean(f *testing.F) {
	f.Add([]byte("\x1b[2J\u009b \xff\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, r := range string(appendClean(nil, text)) {
			if r < 0x20 && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q in what was printed of %q", r, text)
			}
		}
	})
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.Local)
	for text, want := range map[string]time.Time{
		"": {}, "0s": now, "10m": now.Add(-10 * time.Minute), "2026-01-02": now.Truncate(time.Hour).Add(-15 * time.Hour),
		"2026-01-02T15:04:05": now, "2026-01-02 15:04:05": now, "2026-01-02T15:04:05Z": time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC),
	} {
		if got, err := parseSince(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"-5m", "yesterday", "5", "2026-13-01"} {
		if got, err := parseSince(text, now); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}
