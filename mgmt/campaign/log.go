package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/grailos/grail/drivervms/console/logfile"
)

// logReader compares what the console driver keeps with what a client printed.
type logReader struct {
	c       *client
	f       *os.File // nil until the first look
	reader  *logfile.Reader
	partial string // the beginning of a line
}

// errLog reports a log that is not what was printed.
var errLog = errors.New("log")

// compare returns when the log of a client is what it printed. Errors: errLog, it is not.
func (l *logReader) compare(ctx context.Context) error {
	var err error
	// What a driver was about to log when it died is logged by the next one; a little later than it serves, perhaps.
	for try := 0; try < 5; try++ {
		if err = l.once(ctx); err == nil || !errors.Is(err, errLog) || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return err
}

func (l *logReader) once(ctx context.Context) error {
	c := l.c
	where, err := c.r.api.Log(ctx, c.name) // once all is logged
	if err != nil {
		return err
	}
	if l.f == nil {
		if len(where.Files) != 1 {
			return fmt.Errorf("%w of VM %s: %d files", errLog, c.name, len(where.Files))
		}
		if err := l.open(where.Files[0]); err != nil {
			return fmt.Errorf("%w of VM %s: %w", errLog, c.name, err)
		}
	}
	if err := l.reader.Load(); err != nil {
		return fmt.Errorf("%w of VM %s: %w", errLog, c.name, err)
	}
	text := l.partial
	for rec := range l.reader.Records() {
		switch rec.Kind {
		case logfile.Text:
			text += string(rec.Text)
		case logfile.Damaged:
			return fmt.Errorf("%w of VM %s: a record is damaged", errLog, c.name)
		}
	}
	whole, partial := text, ""
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		whole, partial = text[:i], text[i+1:]
	} else {
		whole, partial = "", text
	}
	l.partial = partial
	c.mu.Lock()
	defer c.mu.Unlock()
	if whole != "" {
		c.logged = append(c.logged, strings.Split(whole, "\n")...)
	}
	// Each may be ahead of the other by some lines.
	n := min(len(c.logged), len(c.said))
	for i := range n {
		if c.logged[i] != c.said[i] {
			return fmt.Errorf("%w of VM %s: it printed %q, the log has %q", errLog, c.name, c.said[i], c.logged[i])
		}
	}
	if behind := len(c.said) - n; behind > 0 {
		return fmt.Errorf("%w of VM %s: %d lines are missing, the first is %q", errLog, c.name, behind, c.said[n])
	}
	c.said, c.logged = c.said[:0], c.logged[n:]
	return nil
}

func (l *logReader) open(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		l.reader, err = logfile.NewReader(f, st.Size())
	}
	if err != nil {
		f.Close()
		return err
	}
	l.f = f
	return nil
}

func (l *logReader) close() {
	if l.f != nil {
		l.f.Close()
	}
}
