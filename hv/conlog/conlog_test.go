package conlog

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring/logring"
)

// A detached console's flood is thinned out, and the log says so.
func TestFlood(t *testing.T) {
	fd, err := unix.MemfdCreate("log", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	synctest.Test(t, func(t *testing.T) {
		k := New(0, [2]int{fd, -1}, 0)
		k.Record(make([]byte, FloodBurst), true)
		k.Record([]byte("dropped"), true)
		time.Sleep(time.Millisecond)
		k.Record([]byte("too"), true)
		time.Sleep(2 * time.Second)
		k.Record([]byte("kept"), true)
	})
	b := make([]byte, 2*FloodBurst)
	n, err := unix.Pread(fd, b, 0)
	if want := "\n[grail: 10 bytes of output dropped]\nkept"; err != nil || string(b[FloodBurst:max(n, FloodBurst)]) != want {
		t.Errorf("%d bytes, %q, %v", n, b[min(n, FloodBurst):n], err)
	}
}

// With a ring, the console writes to it and to nothing else, and rings only who sleeps.
func TestShare(t *testing.T) {
	memory, err := hv.NewMemory("ring", 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	bell, err := hv.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	log, err := hv.NewMemory("log", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	mem, err := unix.Mmap(int(memory.Fd()), 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	c, err := logring.NewConsumer(mem, 0)
	if err != nil {
		t.Fatal(err)
	}
	k := New(0, [2]int{int(log.Fd()), -1}, 0)
	if err := k.Share(&hv.ConsoleRing{Memory: int(memory.Fd()), Size: 1 << 16, Kick: int(bell.Fd())}); err != nil {
		t.Fatal(err)
	}
	rung := func() bool {
		_, err := unix.Read(int(bell.Fd()), make([]byte, 8))
		return err == nil
	}
	k.Record([]byte("one\n"), true)
	if rung() {
		t.Error("nobody sleeps")
	}
	c.Arm()
	k.Record([]byte("two\n"), false)
	k.Record([]byte("three\n"), true)
	if !rung() || rung() {
		t.Error("who sleeps is woken once")
	}
	b := make([]byte, 100)
	n, lost, at, err := c.Take(b)
	if string(b[:n]) != "one\ntwo\nthree\n" || lost != 0 || err != nil || time.Since(logring.Time(at)) > time.Hour {
		t.Errorf("%q, %d lost, at %d, %v", b[:n], lost, at, err)
	}
	if got := k.Lines(); len(got) != 3 || got[2] != "three" {
		t.Errorf("last lines %q", got)
	}
	if st, err := log.Stat(); err != nil || st.Size() != 0 {
		t.Errorf("the file has %d bytes, %v", st.Size(), err)
	}
	for _, r := range []hv.ConsoleRing{{Memory: -1, Size: 1 << 16}, {Memory: int(memory.Fd()), Size: 4096}, {Memory: int(memory.Fd())}} {
		if err := k.Share(&r); err == nil {
			t.Errorf("%+v was accepted", r)
		}
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

// What a program died of is kept, however long its stacks are.
func TestSaid(t *testing.T) {
	k := New(3, [2]int{-1, -1}, 0)
	if k.Said() != "" {
		t.Errorf("before anything: %q", k.Said())
	}
	for _, piece := range []string{"panic: first\n", "a panic: no\nfatal error: ", "runtime: out of memory\r", "\n", strings.Repeat("goroutine 1 [running]:\n", 500), "\tpanic: nor this\nfatal error: not yet"} {
		k.Record([]byte(piece), false)
	}
	if got := k.Said(); got != "fatal error: runtime: out of memory" {
		t.Errorf("%q", got)
	}
	k.Record([]byte("\npanic: "+strings.Repeat("x", 1000)+"\n"), false)
	if got := k.Said(); len(got) != tailLine || !strings.HasPrefix(got, "panic: xxx") {
		t.Errorf("a long one: %q", got)
	}
}
