package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// memDisk is a disk in memory that can misbehave.
type memDisk struct {
	mu     sync.Mutex
	b      []byte
	writes int
	bad    func(d *memDisk, p []byte, off int64) (drop bool, err error) // asked before each write
}

func (d *memDisk) Size() int64  { return int64(len(d.b)) }
func (d *memDisk) Flush() error { return nil }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := copy(p, d.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes++
	if d.bad != nil {
		if drop, err := d.bad(d, p, off); drop || err != nil {
			return len(p), err
		}
	}
	return copy(d.b[off:], p), nil
}

func TestRun(t *testing.T) {
	for name, c := range map[string]struct {
		bad  func(d *memDisk, p []byte, off int64) (bool, error)
		want string
	}{
		"good": {nil, ""},
		"lost": {func(d *memDisk, p []byte, off int64) (bool, error) { return d.writes%50 == 0, nil }, "block"},
		"torn": {func(d *memDisk, p []byte, off int64) (bool, error) {
			copy(d.b[off:], p[:100])
			return d.writes%7 == 0, nil
		}, "block"},
		"shifted": {func(d *memDisk, p []byte, off int64) (bool, error) { p[0] ^= byte(d.writes / 300); return false, nil }, "block"},
		"error":   {func(d *memDisk, p []byte, off int64) (bool, error) { return false, errIf(d.writes > 300) }, "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &memDisk{b: make([]byte, 100*blockSize), bad: c.bad}
			r := &Run{Seed: 3, Workers: 3, Ops: 2000, Area: 1 << 30}
			s, err := r.Do(d)
			if c.want == "" {
				if err != nil || s.Ops != 6000 || s.Verified == 0 || s.Flushes == 0 {
					t.Error(s, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if _, err := (&Run{Workers: 10}).Do(&memDisk{b: make([]byte, 100)}); err == nil {
		t.Error("ran on too small a disk")
	}
}

func errIf(b bool) error {
	if b {
		return errors.New("broken")
	}
	return nil
}

func TestCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 64*blockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := open("", path)
	if err != nil {
		t.Fatal(err)
	}
	marks := map[int]int{}
	var mu sync.Mutex
	r := &Run{Seed: 9, Workers: 2, Ops: 300, Area: 1 << 20, Flushed: func(w, op int) {
		mu.Lock()
		marks[w] = op
		mu.Unlock()
	}}
	if _, err := r.Do(d); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Check(d, marks); n == 0 || err != nil {
		t.Fatal(n, err)
	}
	// Take back the last write to a block that a flush covered.
	p := make([]byte, blockSize)
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	got, err := opOf(p, 9, 0)
	if err != nil {
		t.Fatal(err)
	}
	fill(p, 9, 0, 0)
	if _, err := d.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Check(d, marks); err == nil {
		t.Errorf("lost write of operation %d was not noticed", got)
	}
	for s, ok := range map[string]bool{"": true, "0:5": true, "0:5,1:7": true, "x": false, "1:": false, "1:2:3": false} {
		if _, err := parseMarks(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestStop(t *testing.T) {
	stop := make(chan struct{})
	var once sync.Once
	r := &Run{Seed: 1, Workers: 3, Ops: 1 << 30, Area: 1 << 20, Stop: stop, Progress: func(s Stats) {
		if s.Ops >= 100 {
			once.Do(func() { close(stop) })
		}
	}}
	s, err := r.Do(&memDisk{b: make([]byte, 1<<20)})
	if err != nil || s.Ops < 100 || s.Ops > 110 {
		t.Errorf("%+v, %v", s, err)
	}
}
