package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/grailos/grail/drivervms/console/logfile"
	"github.com/grailos/grail/mgmt/api"
)

// logLine is one line of a log, or a piece of one that is still being written.
type logLine struct {
	from int       // which of the log's files
	at   time.Time // zero if that is not known
	text []byte
	mark bool // ours, and not the VM's
}

// logSource reads the log of one VM or driver: what a console driver keeps, or the text files of runs without one. All of it is what a guest wrote, or a
// driver VM.
type logSource struct {
	name    string
	all     bool
	files   map[string]*logFile
	texts   map[string]int64 // how much of each was read
	started bool
}

type logFile struct {
	n      int
	f      *os.File
	reader *logfile.Reader
}

func newLogSource(name string, all bool) *logSource {
	return &logSource{name: name, all: all, files: map[string]*logFile{}, texts: map[string]int64{}}
}

func (s *logSource) close() {
	for _, f := range s.files {
		f.f.Close()
	}
}

// read returns what has come since the last read, in order of time. The first read leaves out earlier runs of a VM, unless all are asked for.
func (s *logSource) read(l api.Log) ([]logLine, error) {
	first := !s.started
	s.started = true
	lines, err := s.readTexts(l.Texts)
	if err != nil {
		return nil, err
	}
	if first && !l.Driver && len(lines) > 0 && !s.all {
		// The last run had no console driver: what one keeps is older.
		for _, path := range l.Files {
			if _, err := s.readFile(path, false); err != nil {
				return nil, err
			}
		}
		return lines, nil
	}
	var kept []logLine
	for _, path := range l.Files {
		more, err := s.readFile(path, first && !s.all && !l.Driver)
		if err != nil {
			return nil, err
		}
		kept = append(kept, more...)
	}
	if len(l.Files) > 1 {
		slices.SortStableFunc(kept, func(a, b logLine) int { return a.at.Compare(b.at) })
	}
	return append(kept[:len(kept):len(kept)], lines...), nil
}

// readFile returns the new lines of one file; with last only those of the last run.
func (s *logSource) readFile(path string, last bool) ([]logLine, error) {
	f := s.files[path]
	if f == nil {
		var err error
		if f, err = openLogFile(path, len(s.files)); err != nil || f == nil {
			return nil, err
		}
		s.files[path] = f
	}
	if err := f.reader.Load(); err != nil {
		return nil, fmt.Errorf("log of %s, %s: %w", s.name, path, err)
	}
	var lines []logLine
	if f.reader.Skipped() {
		lines = append(lines, logLine{from: f.n, mark: true, text: []byte("[grail: the log went on faster than it was read]\n")})
	}
	return f.lines(lines, last, s.all), nil
}

// openLogFile returns nil when the file is gone, or nobody has written to it yet.
func openLogFile(path string, n int) (*logFile, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("console log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() == 0 {
		f.Close()
		return nil, nil
	}
	var r *logfile.Reader
	if err == nil {
		r, err = logfile.NewReader(f, st.Size())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("console log %s: %w", path, err)
	}
	return &logFile{n: n, f: f, reader: r}, nil
}

// lines appends the loaded records to list, joined to lines.
func (f *logFile) lines(list []logLine, last, runs bool) []logLine {
	var run uint64
	if last {
		for r := range f.reader.Records() {
			if r.Run != 0 {
				run = r.Run
			}
		}
	}
	mark := func(r logfile.Record, format string, a ...any) {
		list = append(list, logLine{from: f.n, at: r.Time, mark: true, text: fmt.Appendf(nil, "[grail: "+format+"]\n", a...)})
	}
	begun := false
	for r := range f.reader.Records() {
		if last && r.Run != run && r.Kind != logfile.Damaged {
			continue
		}
		switch r.Kind {
		case logfile.Text:
			if begun {
				l := &list[len(list)-1]
				l.text = append(l.text, r.Text...)
			} else {
				list = append(list, logLine{from: f.n, at: r.Time, text: slices.Clone(r.Text)})
			}
			begun = len(r.Text) > 0 && r.Text[len(r.Text)-1] != '\n'
			continue
		case logfile.Lost:
			mark(r, "%d bytes of output lost", r.Count)
		case logfile.Limited:
			mark(r, "%d bytes of output dropped: too much at once", r.Count)
		case logfile.Start:
			if runs {
				mark(r, "a new run")
			}
		case logfile.Damaged:
			mark(r, "the log was damaged here")
		}
		begun = false
	}
	return list
}

// readTexts returns the new lines of text files, which are used in turn.
func (s *logSource) readTexts(paths []string) ([]logLine, error) {
	var lines []logLine
	for i, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			continue
		}
		if st.Size() < s.texts[p] {
			s.texts[p] = 0 // the log went round
		}
		b, err := readFrom(p, s.texts[p])
		if err != nil {
			return nil, err
		}
		s.texts[p] += int64(len(b))
		for len(b) > 0 {
			n := len(b)
			if k := slices.Index(b, '\n'); k >= 0 {
				n = k + 1
			}
			if k := len(lines) - 1; i > 0 && k >= 0 && lines[k].text[len(lines[k].text)-1] != '\n' {
				lines[k].text = append(lines[k].text, b[:n]...) // a line that began in the other file
			} else {
				lines = append(lines, logLine{from: -1, text: slices.Clone(b[:n])})
			}
			b = b[n:]
		}
	}
	return lines, nil
}

// readFrom reads a file from offset on.
func readFrom(path string, offset int64) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("console log: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, fmt.Errorf("console log: %w", err)
	}
	return io.ReadAll(f)
}
