package vfs

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
)

// fakeBase is the guest address of fakeMem's first byte.
const fakeBase = 0x10000

// fakeMem is guest memory in one slice; anything outside is EFAULT.
type fakeMem struct {
	b    []byte
	lend bool         // Segments works, in pieces of piece bytes
	held atomic.Int64 // Segments not yet released
}

func (m *fakeMem) at(addr, n uint64) ([]byte, error) {
	if addr < fakeBase || addr-fakeBase > uint64(len(m.b)) || n > uint64(len(m.b))-(addr-fakeBase) {
		return nil, unix.EFAULT
	}
	return m.b[addr-fakeBase:][:n], nil
}

func (m *fakeMem) CopyIn(addr uint64, b []byte) error {
	s, err := m.at(addr, uint64(len(b)))
	copy(b, s)
	return err
}

func (m *fakeMem) CopyOut(addr uint64, b []byte) error {
	s, err := m.at(addr, uint64(len(b)))
	copy(s, b)
	return err
}

func (m *fakeMem) Segments(addr, n uint64, _ bool, dst [][]byte) ([][]byte, func(), bool, error) {
	if !m.lend {
		return dst, nil, false, nil
	}
	s, err := m.at(addr, n)
	if err != nil {
		return dst, nil, true, err
	}
	const piece = 3000
	for len(s) > 0 {
		k := min(piece, len(s))
		dst, s = append(dst, s[:k:k]), s[k:]
	}
	m.held.Add(1)
	return dst, func() { m.held.Add(-1) }, true, nil
}

// pollWaiter waits on the host; after 10 s it gives up, as an interrupted thread.
type pollWaiter struct{ limit time.Duration }

func (w pollWaiter) Poll(fds []unix.PollFd, timeout time.Duration) (int, error) {
	limit := w.limit
	if limit == 0 {
		limit = 10 * time.Second
	}
	forever := timeout < 0 || timeout > limit
	if forever {
		timeout = limit
	}
	deadline := time.Now().Add(timeout)
	for {
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline)+time.Millisecond-1).Milliseconds()))
		switch {
		case err == unix.EINTR: // the Go runtime's own signals are none of the guest's
		case n == 0 && err == nil && forever:
			return 0, unix.EINTR
		default:
			return n, err
		}
	}
}

// guest is one guest thread of a table under test, with a bump allocator over its memory.
type guest struct {
	tb  testing.TB
	t   *Table
	mem *fakeMem
	c   *Call
	top uint64
}

func newGuest(tb testing.TB, cfg Config, lend bool) *guest {
	tb.Helper()
	t, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	g := &guest{tb: tb, t: t, mem: &fakeMem{b: make([]byte, 4<<20), lend: lend}}
	g.c = &Call{Mem: g.mem, Wait: pollWaiter{}}
	tb.Cleanup(func() {
		if g.mem.held.Load() != 0 {
			tb.Errorf("%d segments were not released", g.mem.held.Load())
		}
		t.Close()
	})
	return g
}

// bare is a configuration without any host descriptor.
func bare() Config {
	return Config{Stdin: -1, Stdout: -1, Stderr: -1, Log: [2]int{-1, -1}, Files: -1, Program: -1, ProgramName: "prog"}
}

// thread returns a second thread of the same guest.
func (g *guest) thread() *guest {
	return &guest{tb: g.tb, t: g.t, mem: g.mem, c: &Call{Mem: g.mem, Wait: pollWaiter{}}, top: g.top + 1<<20}
}

func (g *guest) alloc(n int) uint64 {
	p := fakeBase + g.top
	g.top += uint64(n+15) &^ 15
	if g.top > uint64(len(g.mem.b)) {
		g.top = uint64(n+15) &^ 15
		p = fakeBase
	}
	return p
}

func (g *guest) str(s string) uint64 {
	p := g.alloc(len(s) + 1)
	copy(g.mem.b[p-fakeBase:], s+"\x00")
	return p
}

func (g *guest) bytes(b []byte) uint64 {
	p := g.alloc(len(b))
	copy(g.mem.b[p-fakeBase:], b)
	return p
}

func (g *guest) view(p uint64, n int) []byte { return g.mem.b[p-fakeBase:][:n] }

func (g *guest) call(nr uint64, a ...uint64) (uint64, unix.Errno) {
	g.tb.Helper()
	var args [6]uint64
	copy(args[:], a)
	r, e, known := g.t.Syscall(g.c, nr, args)
	if !known {
		g.tb.Fatalf("call %d is unknown", nr)
	}
	return r, e
}

// ok makes a call that must succeed.
func (g *guest) ok(nr uint64, a ...uint64) uint64 {
	g.tb.Helper()
	r, e := g.call(nr, a...)
	if e != 0 {
		g.tb.Fatalf("call %d%v: %v", nr, a, e)
	}
	return r
}

// fails makes a call that must fail with want.
func (g *guest) fails(want unix.Errno, nr uint64, a ...uint64) {
	g.tb.Helper()
	if r, e := g.call(nr, a...); e != want {
		g.tb.Fatalf("call %d%x = %d, %v; want %v", nr, a, int64(r), e, want)
	}
}

func (g *guest) open(path string, flags int) uint64 {
	g.tb.Helper()
	return g.ok(unix.SYS_OPENAT, cwdArg, g.str(path), uint64(flags), 0o644)
}

func (g *guest) write(fd uint64, s string) uint64 {
	g.tb.Helper()
	return g.ok(unix.SYS_WRITE, fd, g.str(s), uint64(len(s)))
}

func (g *guest) read(fd uint64, n int) string {
	g.tb.Helper()
	p := g.alloc(n)
	k := g.ok(unix.SYS_READ, fd, p, uint64(n))
	return string(g.view(p, int(k)))
}

func (g *guest) u32(p uint64) uint32 { return binary.LittleEndian.Uint32(g.view(p, 4)) }

func (g *guest) caps() []abi.Cap {
	g.tb.Helper()
	n := g.ok(abi.SysCaps, 0, 0)
	p := g.alloc(int(n))
	g.ok(abi.SysCaps, p, n)
	caps, err := abi.ParseCaps(g.view(p, int(n)))
	if err != nil {
		g.tb.Fatal(err)
	}
	return caps
}
