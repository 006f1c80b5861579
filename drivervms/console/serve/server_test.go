package serve

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/console/logfile"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/logring"
)

const (
	ringBytes = 4096 + 1<<16
	logBytes  = 1 << 18
)

var config = LogConfig{Run: 1, Rate: 1 << 20, Burst: 1 << 20}

// console is a VM's end of a console, and its log.
type console struct {
	t         testing.TB
	ring, log []byte
	file      *os.File
	bell      ring.Doorbell
	p         *logring.Producer
	out       *logfile.Reader
}

func mapped(t testing.TB, f *os.File, size int) []byte {
	t.Helper()
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

func newConsole(t testing.TB) *console {
	t.Helper()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	c := &console{t: t, file: open("log")}
	c.ring, c.log = mapped(t, open("ring"), ringBytes), mapped(t, c.file, logBytes)
	var err error
	if c.bell, err = ring.NewDoorbell(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.bell.Close() })
	if c.p, err = logring.NewProducer(c.ring); err != nil {
		t.Fatal(err)
	}
	if c.out, err = logfile.NewReader(c.file, logBytes); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *console) print(format string, a ...any) {
	if c.p.Put(fmt.Appendf(nil, format, a...), time.Now()) {
		_ = c.bell.Ring()
	}
}

// logged returns what has come to the log since the last time.
func (c *console) logged() string {
	c.t.Helper()
	if err := c.out.Load(); err != nil {
		c.t.Fatal(err)
	}
	var b strings.Builder
	for r := range c.out.Records() {
		switch r.Kind {
		case logfile.Text:
			b.Write(r.Text)
		case logfile.Start:
			b.WriteString("<start>")
		default:
			fmt.Fprintf(&b, "<%d: %d>", r.Kind, r.Count)
		}
	}
	return b.String()
}

func (c *console) attach(s *Server, id uint64) {
	c.t.Helper()
	if err := s.Attach(id, config, c.ring, c.log, c.bell); err != nil {
		c.t.Fatal(err)
	}
}

func expect(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %.300q, want %.300q", what, got, want)
	}
}

func TestServe(t *testing.T) {
	s := New(Config{})
	a, b := newConsole(t), newConsole(t)
	a.print("early\n")
	a.attach(s, 1)
	b.attach(s, 2)
	if err := s.Attach(2, config, b.ring, b.log, b.bell); err != ErrAttached {
		t.Errorf("attached twice: %v", err)
	}
	if n := s.Round(); n != 1 {
		t.Errorf("%d pieces", n)
	}
	expect(t, "a", a.logged(), "<start>early\n")
	a.print("one\n")
	b.print("two\nthr")
	s.Round()
	b.print("ee\n")
	s.Round()
	expect(t, "a", a.logged(), "one\n")
	expect(t, "b", b.logged(), "<start>two\nthree\n")
	if s.Round() != 0 || s.Pieces != 4 || s.Bytes != 20 {
		t.Errorf("%d pieces, %d bytes", s.Pieces, s.Bytes)
	}
	// What is in the ring at the end is logged.
	a.print("last\n")
	s.Detach(1)
	s.Detach(1)
	expect(t, "a", a.logged(), "last\n")
	a.print("nobody listens\n")
	b.print("four\n")
	s.Round()
	expect(t, "a", a.logged(), "")
	expect(t, "b", b.logged(), "four\n")
	if len(s.Deaths) > 0 {
		t.Errorf("deaths: %v", s.Deaths)
	}
}

// At whatever piece an instance ends, the next one logs each byte once.
func TestNextInstance(t *testing.T) {
	c := newConsole(t)
	var want strings.Builder
	want.WriteString("<start>")
	type crash struct{}
	for i := range 50 {
		s := New(Config{})
		func() {
			defer func() {
				if v := recover(); v != nil && v != (crash{}) {
					panic(v)
				}
			}()
			c.attach(s, 1)
			steps := 0
			s.Step = func() {
				if steps++; steps > i%3 {
					panic(crash{})
				}
			}
			for j := range 4 {
				fmt.Fprintf(&want, "line %d.%d\n", i, j)
				c.print("line %d.%d\n", i, j)
				s.Round()
			}
		}()
	}
	s := New(Config{})
	c.attach(s, 1)
	s.Round()
	expect(t, "log", c.logged(), want.String())
}

// A driver that comes late says how much is missing.
func TestGap(t *testing.T) {
	c := newConsole(t)
	s := New(Config{})
	c.attach(s, 1)
	c.print("before\n")
	s.Round()
	line := strings.Repeat("x", 99) + "\n"
	for range 2000 {
		c.print("%s", line)
	}
	s.Round()
	got := c.logged()
	// What the ring holds, less what the last line needs; the gap ends in a line.
	if want := fmt.Sprintf("<start>before\n<%d: %d>", logfile.Lost, 2000*len(line)-(ringBytes-4096)); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, line) {
		t.Errorf("%.100q, want %q", got, want)
	}
}

// A flood is limited, which the log says at once, once a second, and at the end; the neighbour has all of its log.
func TestFlood(t *testing.T) {
	a, b := newConsole(t), newConsole(t)
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		if err := s.Attach(1, LogConfig{Run: 1, Rate: 1000, Burst: 4000}, a.ring, a.log, a.bell); err != nil {
			t.Fatal(err)
		}
		b.attach(s, 2)
		line := strings.Repeat("x", 99) + "\n"
		for i := range 500 {
			a.print("%s", line)
			b.print("%d\n", i)
			s.Round()
			time.Sleep(10 * time.Millisecond)
		}
		s.Detach(1)
	})
	got := a.logged()
	kept, dropped, gaps := 0, 0, 0
	for len(got) > 0 {
		var n int
		if i := strings.IndexByte(got, '<'); i > 0 || i < 0 {
			if i < 0 {
				i = len(got)
			}
			kept += i
			got = got[i:]
			continue
		}
		end := strings.IndexByte(got, '>')
		if _, err := fmt.Sscanf(got, "<3: %d>", &n); err == nil {
			dropped += n
			gaps++
		} else if !strings.HasPrefix(got, "<start>") {
			t.Fatalf("%.20q", got)
		}
		got = got[end+1:]
	}
	if kept+dropped != 500*100 || kept < 4000 || kept > 4000+5*1000 || gaps < 2 || gaps > 10 {
		t.Errorf("%d bytes kept, %d dropped, in %d gaps", kept, dropped, gaps)
	}
	if got := b.logged(); strings.Count(got, "\n") != 500 || strings.Contains(got[7:], "<") {
		t.Errorf("the neighbour: %.100q", got)
	}
}

// Without anything new, a gap is still written down after a while.
func TestGapAlone(t *testing.T) {
	c := newConsole(t)
	at := time.Unix(1000, 0)
	s := New(Config{Now: func() time.Time { return at }})
	if err := s.Attach(1, LogConfig{Run: 1, Rate: 1 << 10, Burst: 1 << 10}, c.ring, c.log, c.bell); err != nil {
		t.Fatal(err)
	}
	c.print("%s\n", strings.Repeat("x", 2000))
	s.Round()
	if got := c.logged(); len(got) != 7+1024 {
		t.Errorf("%q", got)
	}
	s.busy = false
	if wake, err := s.Wait(-1); wake != ring.WakeTimeout || err != nil {
		t.Errorf("%v, %v", wake, err)
	}
	at = at.Add(gapEvery)
	s.Round()
	expect(t, "later", c.logged(), fmt.Sprintf("<3: %d>", 2001-1024))
}

// A ring or a log that is no such thing is refused; one that turns bad ends its console alone.
func TestHostile(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	s := New(Config{})
	good := newConsole(t)
	good.attach(s, 1)
	bad := newConsole(t)
	if err := s.Attach(2, config, bad.ring[:100], bad.log, bad.bell); err == nil {
		t.Error("a short ring was attached")
	}
	if err := s.Attach(2, config, bad.ring, bad.log[:100], bad.bell); err == nil {
		t.Error("a short log was attached")
	}
	bad.attach(s, 2)
	bad.print("hello\n")
	s.Round()
	clear(bad.ring) // its stream goes back
	bad.ring[136] = 1
	cut := newConsole(t)
	cut.attach(s, 3)
	if err := cut.file.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	cut.print("into the void\n")
	good.print("hello\n")
	s.Round()
	expect(t, "the good one", good.logged(), "<start>hello\n")
	if len(s.Deaths) != 2 || s.Deaths[0].ID != 2 || s.Deaths[1].ID != 3 {
		t.Errorf("deaths: %v", s.Deaths)
	}
	s.Deaths = nil
	late := newConsole(t)
	late.attach(s, 4)
	if err := late.file.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	late.print("into the void\n")
	s.Detach(4)
	if len(s.Deaths) != 1 || s.Deaths[0].ID != 4 {
		t.Errorf("deaths: %v", s.Deaths)
	}
	if err := s.Attach(5, config, late.ring, late.log, late.bell); err == nil {
		t.Error("a log that was cut off was attached")
	}
	// Another fault is a bug of ours.
	defer func() {
		if recover() == nil {
			t.Error("a fault elsewhere was taken for the client's")
		}
	}()
	var err error
	func() {
		defer s.clients[0].faults(&err)
		_ = s.clients[len(s.clients)]
	}()
}

func TestWait(t *testing.T) {
	s := New(Config{})
	c := newConsole(t)
	c.attach(s, 1)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	s.Watch(int(r.Fd()))
	wait := func(want ring.Wake) {
		t.Helper()
		if got, err := s.Wait(-1); got != want || err != nil {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
	}
	go c.print("hello\n")
	wait(ring.WakeWork)
	s.Round()
	wait(ring.WakeWork) // after its rest
	if n := s.Round(); n != 0 {
		t.Errorf("%d pieces", n)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	wait(ring.WakeWatch)
	c.print("again\n")
	s.Round()
	wait(ring.WakeWatch) // its rest ends early
	if wake, err := s.Wait(0); wake == ring.WakeWork || err != nil {
		t.Errorf("%v, %v", wake, err)
	}
}

func TestSelfTest(t *testing.T) {
	s := New(Config{})
	if err := s.Test(); err != nil || s.Pieces != 0 {
		t.Errorf("%v, %d pieces", err, s.Pieces)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []LogConfig{{}, {Rate: 1 << 20}, {Rate: 1 << 20, Burst: 1 << 40}, {Rate: 1<<64 - 1, Burst: 1 << 20}} {
		if _, err := c.Text(); err == nil {
			t.Errorf("%+v has a text", c)
		}
	}
	text, err := config.Text()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseLogConfig(text); got != config || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "{}", "[]", `{"run":1,"rate":-5,"burst":5}`, `{"run":1,"rate":1e30,"burst":1048576}`} {
		if _, err := ParseLogConfig(text); err == nil {
			t.Errorf("%q was parsed", text)
		}
	}
}

// FuzzRing gives the server a ring that holds anything.
func FuzzRing(f *testing.F) {
	f.Add([]byte{}, uint64(100), uint64(100))
	f.Add([]byte("hello\nworld\x1b[2J"), uint64(1<<63), uint64(1<<64-1))
	c := newConsole(f)
	f.Fuzz(func(t *testing.T, b []byte, head, step uint64) {
		clear(c.log[:4096])
		clear(c.ring)
		s := New(Config{})
		if err := s.Attach(1, config, c.ring, c.log, c.bell); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			copy(c.ring[128:], b)
			for j := range 8 {
				c.ring[136+j] = byte((head + uint64(i)*step) >> (8 * j))
			}
			s.Round()
		}
		s.Detach(1)
		r, err := logfile.NewReader(c.file, logBytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Load(); err != nil {
			t.Fatal(err)
		}
		for rec := range r.Records() {
			if rec.Kind == logfile.Damaged {
				t.Fatal("damaged")
			}
		}
	})
}
