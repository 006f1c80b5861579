//go:build linux && amd64

package process

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	ChildMain()
	if dir := os.Getenv(prebuiltEnv); dir != "" {
		buildDir = dir
		os.Exit(m.Run())
	}
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// prebuiltEnv names a directory with the guest programs, for a test binary that this one starts.
const prebuiltEnv = "GRAIL_PROCESS_GUESTS"

var buildDir string

func buildPath(t testing.TB, name string) string {
	if buildDir == "" {
		dir, err := os.MkdirTemp("", "grail-process")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		buildDir = dir
	}
	return filepath.Join(buildDir, name)
}

var goGuest = sync.OnceValues(func() (string, error) {
	out := filepath.Join(buildDir, "goguest")
	if os.Getenv(prebuiltEnv) != "" {
		return out, nil
	}
	cmd := exec.Command("go", "build", "-o", out, "main.go")
	cmd.Dir = "testdata/goguest"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return string(msg), err
	}
	return out, nil
})

func goProgram(t testing.TB) *os.File {
	t.Helper()
	buildPath(t, "")
	if _, err := exec.LookPath("go"); err != nil && os.Getenv(prebuiltEnv) == "" {
		t.Skip("no go tool to build the guest program with")
	}
	path, err := goGuest()
	if err != nil {
		t.Fatalf("building the Go guest: %v\n%s", err, path)
	}
	return open(t, path)
}

var cBuilt = map[string]bool{}

// cProgram builds the C guest; flags is -static or -static-pie.
func cProgram(t testing.TB, flags string) *os.File {
	t.Helper()
	path := buildPath(t, "cguest"+flags)
	if !cBuilt[flags] && os.Getenv(prebuiltEnv) == "" {
		if _, err := exec.LookPath("musl-gcc"); err != nil {
			t.Skip("no musl-gcc (Debian: musl-tools) to build the C guest with")
		}
		args := []string{"-static", "-O1", "-fno-omit-frame-pointer", "-o", path, "testdata/cguest.c"}
		if flags == "-static-pie" {
			// The wrapper's specs know no static-pie: give the start files, which lie beside its libc.
			out, err := exec.Command("musl-gcc", "-print-file-name=libc.a").Output()
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Dir(strings.TrimSpace(string(out)))
			if _, err := os.Stat(filepath.Join(dir, "rcrt1.o")); err != nil || !strings.Contains(dir, "musl") {
				dir = "/usr/lib/x86_64-linux-musl"
			}
			start := func(name string) string { return filepath.Join(dir, name) }
			if _, err := os.Stat(start("rcrt1.o")); err != nil {
				t.Skip("musl without static-pie start files")
			}
			args = append(args, "-fPIE", "-nostartfiles", "-Wl,-pie,--no-dynamic-linker", start("rcrt1.o"), start("crti.o"), start("crtn.o"))
		}
		if msg, err := exec.Command("musl-gcc", args...).CombinedOutput(); err != nil {
			t.Fatalf("building the C guest: %v\n%s", err, msg)
		}
		cBuilt[flags] = true
	}
	return open(t, path)
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// supervisor is a small system-call service: console, eventfds, epoll on them, nothing else.
type supervisor struct {
	t     testing.TB
	g     *Guest
	stdin chan []byte // nil reads block
	onNr  map[int]func(c *Call)

	mu      sync.Mutex
	out     bytes.Buffer
	seen    map[int]int // calls by number
	events  map[int]uint64
	epolls  map[int]map[int]uint64
	nextFD  int
	changed *sync.Cond
	dead    bool
	first   time.Time // of the first write
}

// start starts the guest and serves it in the background; sup.finish waits for the end.
func start(t testing.TB, cfg Config, stdin []byte) *supervisor {
	t.Helper()
	g, err := Start(cfg)
	if err != nil {
		t.Helper()
		if s, _ := Probe(); !s.Works {
			t.Skipf("engine process does not work here: %v", s.Missing)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	if forceMode == nil && strings.Contains(g.Jail(), "; not ") {
		t.Logf("jail: %s", g.Jail())
	}
	s := &supervisor{t: t, g: g, stdin: make(chan []byte, 1), onNr: map[int]func(*Call){}, seen: map[int]int{}, events: map[int]uint64{},
		epolls: map[int]map[int]uint64{}, nextFD: 3}
	s.changed = sync.NewCond(&s.mu)
	if stdin != nil {
		s.stdin <- stdin
		close(s.stdin)
	}
	return s
}

// run starts and serves the guest to its end.
func run(t testing.TB, cfg Config) (string, Exit, *supervisor) {
	t.Helper()
	s := start(t, cfg, []byte{})
	s.serve()
	return s.out.String(), s.g.Wait(), s
}

func (s *supervisor) serve() {
	for {
		c, err := s.g.Next()
		if err == io.EOF {
			s.mu.Lock()
			s.dead = true
			s.changed.Broadcast()
			s.mu.Unlock()
			return
		}
		if err != nil {
			s.t.Errorf("Next: %v", err)
			return
		}
		s.mu.Lock()
		s.seen[c.Nr]++
		s.mu.Unlock()
		if f := s.onNr[c.Nr]; f != nil {
			f(c)
			continue
		}
		s.call(c)
	}
}

func (s *supervisor) ret(c *Call, val uint64) {
	if err := c.Return(val); err != nil {
		s.t.Errorf("Return of call %d: %v", c.Nr, err)
	}
}

func (s *supervisor) call(c *Call) {
	switch c.Nr {
	case unix.SYS_WRITE:
		s.write(c)
	case unix.SYS_WRITEV:
		s.writev(c)
	case unix.SYS_READ:
		go s.read(c)
	case unix.SYS_FCNTL:
		s.ret(c, unix.O_RDWR)
	case unix.SYS_OPENAT, unix.SYS_OPEN:
		s.ret(c, Errno(unix.ENOENT))
	case unix.SYS_EVENTFD2, unix.SYS_EPOLL_CREATE1:
		s.mu.Lock()
		fd := s.nextFD
		s.nextFD++
		if c.Nr == unix.SYS_EVENTFD2 {
			s.events[fd] = c.Args[0]
		} else {
			s.epolls[fd] = map[int]uint64{}
		}
		s.mu.Unlock()
		s.ret(c, uint64(fd))
	case unix.SYS_EPOLL_CTL:
		s.epollCtl(c)
	case unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_WAIT:
		go s.epollWait(c)
	case unix.SYS_EXECVE, unix.SYS_EXECVEAT:
		s.ret(c, Errno(unix.ENOSYS))
	default:
		s.ret(c, Errno(unix.ENOSYS))
	}
}

func (s *supervisor) write(c *Call) {
	fd, n := int(c.Args[0]), c.Args[2]
	s.mu.Lock()
	_, isEvent := s.events[fd]
	s.mu.Unlock()
	if n > 1<<20 || !isEvent && fd != 1 && fd != 2 {
		s.ret(c, Errno(unix.EBADF))
		return
	}
	b := make([]byte, n)
	if _, err := s.g.ReadMem(c.Args[1], b); err != nil {
		s.ret(c, Errno(unix.EFAULT))
		return
	}
	s.mu.Lock()
	if isEvent && n == 8 {
		s.events[fd] += binary.LittleEndian.Uint64(b)
		s.changed.Broadcast()
	} else {
		if s.first.IsZero() {
			s.first = time.Now()
		}
		s.out.Write(b)
		s.changed.Broadcast()
	}
	s.mu.Unlock()
	s.ret(c, n)
}

func (s *supervisor) writev(c *Call) {
	fd, count := int(c.Args[0]), c.Args[2]
	if fd != 1 && fd != 2 || count > 16 {
		s.ret(c, Errno(unix.EBADF))
		return
	}
	raw := make([]byte, 16*count)
	if _, err := s.g.ReadMem(c.Args[1], raw); err != nil {
		s.ret(c, Errno(unix.EFAULT))
		return
	}
	var spans []Span
	total := uint64(0)
	for i := uint64(0); i < count; i++ {
		span := Span{binary.LittleEndian.Uint64(raw[16*i:]), binary.LittleEndian.Uint64(raw[16*i+8:])}
		spans = append(spans, span)
		total += span.Len
	}
	b := make([]byte, min(total, 1<<20))
	if n, err := s.g.ReadSpans(b, spans); err != nil || n != len(b) {
		s.ret(c, Errno(unix.EFAULT))
		return
	}
	s.mu.Lock()
	s.out.Write(b)
	s.changed.Broadcast()
	s.mu.Unlock()
	s.ret(c, total)
}

func (s *supervisor) read(c *Call) {
	fd := int(c.Args[0])
	if fd != 0 {
		s.mu.Lock()
		v, ok := s.events[fd]
		s.events[fd] = 0
		s.mu.Unlock()
		if !ok {
			s.ret(c, Errno(unix.EBADF))
			return
		}
		if v == 0 {
			s.ret(c, Errno(unix.EAGAIN))
			return
		}
		s.ret(c, uint64(s.put(c.Args[1], binary.LittleEndian.AppendUint64(nil, v))))
		return
	}
	select {
	case b := <-s.stdin:
		s.ret(c, uint64(s.put(c.Args[1], b)))
	case <-c.Interrupted():
		if err := c.Restart(); err != nil && c.Valid() {
			s.t.Errorf("Restart: %v", err)
		}
	}
}

func (s *supervisor) put(addr uint64, b []byte) int {
	n, err := s.g.WriteMem(addr, b)
	if err != nil {
		return -int(unix.EFAULT)
	}
	return n
}

func (s *supervisor) epollCtl(c *Call) {
	var ev [12]byte
	if c.Args[1] != unix.EPOLL_CTL_DEL {
		if _, err := s.g.ReadMem(c.Args[3], ev[:]); err != nil {
			s.ret(c, Errno(unix.EFAULT))
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	set, fd := s.epolls[int(c.Args[0])], int(c.Args[2])
	if _, ok := s.events[fd]; set == nil || !ok {
		s.ret(c, Errno(unix.EPERM)) // as for a regular file
		return
	}
	set[fd] = binary.LittleEndian.Uint64(ev[4:])
	s.ret(c, 0)
}

func (s *supervisor) epollWait(c *Call) {
	timeout := int32(c.Args[3])
	deadline := time.Now().Add(time.Duration(timeout) * time.Millisecond)
	wake := func() {
		s.mu.Lock()
		s.changed.Broadcast()
		s.mu.Unlock()
	}
	interrupted := c.Interrupted()
	over := make(chan struct{})
	defer close(over)
	if timeout != 0 {
		go func() {
			select {
			case <-interrupted:
				wake()
			case <-over:
			}
		}()
	}
	if timeout > 0 {
		defer time.AfterFunc(time.Until(deadline), wake).Stop()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for fd, data := range s.epolls[int(c.Args[0])] {
			if s.events[fd] > 0 {
				ev := binary.LittleEndian.AppendUint32(nil, unix.EPOLLIN)
				ev = binary.LittleEndian.AppendUint64(ev, data)
				s.put(c.Args[1], ev)
				s.ret(c, 1)
				return
			}
		}
		select {
		case <-interrupted:
			s.ret(c, Errno(unix.EINTR))
			return
		default:
		}
		if s.dead || timeout >= 0 && !time.Now().Before(deadline) {
			s.ret(c, 0)
			return
		}
		s.changed.Wait()
	}
}

// await blocks until the guest has written text.
func (s *supervisor) await(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !bytes.Contains(s.out.Bytes(), []byte(text)) && !s.dead {
		s.changed.Wait()
	}
	if s.dead {
		s.t.Fatalf("guest ended without writing %q: %q", text, s.out.String())
	}
}
