package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// file makes a mapped file.
func file(t testing.TB, size int64) ([]byte, *os.File) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b, f
}

func writer(t testing.TB, mem []byte, run uint64) (*Writer, uint64) {
	t.Helper()
	w, pos, err := NewWriter(mem, run, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	return w, pos
}

func reader(t testing.TB, f *os.File) *Reader {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// show loads what is new and writes it down.
func show(t testing.TB, r *Reader) string {
	t.Helper()
	if err := r.Load(); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if r.Skipped() {
		b.WriteString("<skipped>")
	}
	for rec := range r.Records() {
		switch rec.Kind {
		case Text:
			b.Write(rec.Text)
		case Start:
			fmt.Fprintf(&b, "<run %d>", rec.Run)
		case Damaged:
			b.WriteString("<damaged>")
		default:
			fmt.Fprintf(&b, "<%d: %d>", rec.Kind, rec.Count)
		}
	}
	return b.String()
}

func expect(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestSizes(t *testing.T) {
	for _, n := range []int64{0, 4096, MinBytes - 1, MinBytes + 8, MaxBytes + 4096} {
		if _, err := NewReader(bytes.NewReader(nil), n); !errors.Is(err, ErrFormat) {
			t.Errorf("reader of %d bytes: %v", n, err)
		}
		if n <= MinBytes+8 {
			if _, _, err := NewWriter(make([]byte, n), 1, time.Now()); !errors.Is(err, ErrFormat) {
				t.Errorf("writer of %d bytes: %v", n, err)
			}
		}
	}
}

func TestWriteAndRead(t *testing.T) {
	mem, f := file(t, 1<<16)
	r := reader(t, f)
	expect(t, "before the first writer", show(t, r), "")
	w, pos := writer(t, mem, 7)
	if pos != 0 {
		t.Errorf("a new file ends at %d", pos)
	}
	w.Write([]byte("one\ntw"), time.Unix(2, 0), 6)
	expect(t, "new", show(t, r), "<run 7>one\ntw")
	expect(t, "nothing new", show(t, r), "")
	w.Write([]byte("o\n"), time.Unix(3, 0), 8)
	w.Gap(Lost, 10, time.Unix(3, 0), 18)
	w.Gap(Limited, 5, time.Unix(3, 0), 23)
	expect(t, "more", show(t, r), "o\n<2: 10><3: 5>")

	// The next instance goes on where this one ended.
	w, pos = writer(t, mem, 7)
	if pos != 23 {
		t.Errorf("it ends at %d", pos)
	}
	w.Write([]byte("three\n"), time.Unix(4, 0), 29)
	expect(t, "of the next instance", show(t, r), "three\n")
	if _, pos = writer(t, mem, 8); pos != 0 {
		t.Errorf("another run ends at %d", pos)
	}
	expect(t, "of the next run", show(t, r), "<run 8>")
	expect(t, "from the start", show(t, reader(t, f)), "<run 7>one\ntwo\n<2: 10><3: 5>three\n<run 8>")
	for rec := range reader(t, f).Records() {
		t.Errorf("a record before Load: %v", rec)
	}
}

func TestLongLines(t *testing.T) {
	mem, f := file(t, 1<<16)
	w, _ := writer(t, mem, 1)
	line := strings.Repeat("0123456789", 1000) + "\n"
	w.Write([]byte(line), time.Unix(2, 0), uint64(len(line)))
	expect(t, "a long line", show(t, reader(t, f)), "<run 1>"+line)
	if _, pos := writer(t, mem, 1); pos != uint64(len(line)) {
		t.Errorf("it ends at %d of %d", pos, len(line))
	}
}

// Whatever is written, the file holds the end of it, and a reader that keeps up sees all.
func TestRoundAndRound(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	mem, f := file(t, MinBytes)
	w, _ := writer(t, mem, 1)
	keen, lazy := reader(t, f), reader(t, f)
	var all, seen strings.Builder
	show(t, keen)
	for range 2000 {
		n := rnd.IntN(2 * MaxText)
		if rnd.IntN(4) > 0 {
			n %= 60
		}
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		all.Write(b)
		w.Write(b, time.Unix(2, 0), uint64(all.Len()))
		seen.WriteString(show(t, keen))
		if rnd.IntN(100) == 0 {
			w, _ = writer(t, mem, 1)
		}
		if rnd.IntN(20) == 0 {
			got, missed := strings.CutPrefix(show(t, lazy), "<skipped>")
			got = strings.TrimPrefix(got, "<run 1>")
			if !strings.HasSuffix(all.String(), got) || missed && len(got) < MinBytes/4 {
				t.Fatalf("a lazy reader got %d bytes that are not the end", len(got))
			}
		}
	}
	if seen.String() != all.String() {
		t.Errorf("a keen reader saw %d bytes of %d", seen.Len(), all.Len())
	}
}

// At whatever store its writer ends, a file is whole. An end between two stores leaves the file as the first one made it, so it is
// looked at after each record.
func TestReaderWhileWriting(t *testing.T) {
	mem, f := file(t, MinBytes)
	w, _ := writer(t, mem, 1)
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for i := range uint64(100_000) {
			w.Write(fmt.Appendf(nil, "line %d\n", i), time.Unix(2, 0), i)
		}
	}()
	r := reader(t, f)
	next := 0
	for done := false; !done; {
		select {
		case <-stop:
			done = true
		default:
		}
		if err := r.Load(); err != nil {
			continue // faster than the reader
		}
		for rec := range r.Records() {
			if rec.Kind == Start {
				continue
			}
			var n int
			if _, err := fmt.Sscanf(string(rec.Text), "line %d\n", &n); err != nil || n < next {
				t.Fatalf("%q after line %d", rec.Text, next)
			}
			next = n + 1
		}
	}
	if next != 100_000 {
		t.Errorf("the last line is %d", next)
	}
}

// Damage is noticed, and the log goes on.
func TestDamage(t *testing.T) {
	for what, harm := range map[string]func(mem []byte){
		"magic":                func(mem []byte) { mem[0]++ },
		"tail behind head":     func(mem []byte) { word(mem, tailOffset).Store(1 << 40) },
		"head far ahead":       func(mem []byte) { word(mem, headOffset).Store(1 << 40) },
		"odd head":             func(mem []byte) { word(mem, headOffset).Add(4) },
		"long record":          func(mem []byte) { mem[headerBytes+2] = 1 },
		"no kind":              func(mem []byte) { mem[headerBytes+4] = 0 },
		"head inside a record": func(mem []byte) { word(mem, headOffset).Add(^uint64(7)) },
	} {
		mem, f := file(t, MinBytes)
		w, _ := writer(t, mem, 1)
		w.Write([]byte("hello\n"), time.Unix(2, 0), 6)
		harm(mem)
		r := reader(t, f)
		if err := r.Load(); err == nil {
			expect(t, what, show(t, r), "")
		} else if !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
		w, pos := writer(t, mem, 1)
		if pos != 0 {
			t.Errorf("%s: a damaged file ends at %d", what, pos)
		}
		w.Write([]byte("again\n"), time.Unix(3, 0), 6)
		expect(t, what, show(t, reader(t, f)), "<damaged><run 1>again\n")
	}
}

// FuzzRead reads what a hostile driver wrote, and has a new instance go on with it.
func FuzzRead(f *testing.F) {
	mem, _ := file(f, MinBytes)
	w, _ := writer(f, mem, 3)
	w.Write([]byte("hello\nworld"), time.Unix(2, 0), 11)
	w.Gap(Lost, 5, time.Unix(2, 0), 16)
	f.Add(bytes.Clone(mem[:24]), bytes.Clone(mem[headerBytes:][:500]))
	for i := range uint64(300) {
		w.Write([]byte("hello\nworld"), time.Unix(2, 0), 11*i)
	}
	f.Add(bytes.Clone(mem[:24]), bytes.Clone(mem[headerBytes:]))
	f.Fuzz(func(t *testing.T, head, records []byte) {
		b := make([]byte, MinBytes)
		copy(b[:headerBytes], head)
		copy(b[headerBytes:], records)
		r, err := NewReader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		total := 0
		if r.Load() == nil {
			for rec := range r.Records() {
				if total += recordBytes + len(rec.Text); len(rec.Text) > MaxText || total > 2*len(b) {
					t.Fatalf("%d bytes of records", total)
				}
			}
		}
		w, pos, err := NewWriter(b, 3, time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		for range 2000 {
			pos += 6
			w.Write([]byte("again\n"), time.Unix(3, 0), pos)
		}
		if err := r.Load(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for rec := range r.Records() {
			if rec.Kind == Damaged {
				t.Fatal("damaged, after it was written anew")
			}
			n++
		}
		if n < 100 {
			t.Fatalf("%d records", n)
		}
	})
}
