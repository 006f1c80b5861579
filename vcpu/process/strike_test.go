//go:build linux && amd64

package process

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Threads are stopped again and again in the middle of what they do, and the program does not notice.
func TestStrikeIsNotNoticed(t *testing.T) {
	for _, what := range [][]string{{"gc", "1"}, {"timers", "100"}} {
		s := start(t, Config{Program: goProgram(t), Argv: append([]string{"guest"}, what...)}, []byte{})
		if !s.g.Traced() {
			t.Skip("SKIPPED: no ptrace here")
		}
		stopped, busy := 0, 0
		quit, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				for _, tid := range s.g.TIDs() {
					select {
					case <-quit:
						return
					default:
					}
					err := s.g.Strike(tid, time.Second, func(*unix.PtraceRegs) (unix.Signal, error) { return 0, nil })
					switch {
					case err == nil:
						stopped++
					case errors.Is(err, ErrBusy):
						busy++
					}
				}
			}
		}()
		s.serve()
		close(quit)
		<-done
		out := s.out.String()
		t.Logf("%v: %d stops, %d threads that were busy: %s", what, stopped, busy, out)
		if exit := s.g.Wait(); exit.Code != 0 || exit.Signal != 0 || strings.Contains(out, "false") || !strings.Contains(out, "true") || stopped == 0 {
			t.Errorf("%v: %+v: %s", what, exit, out)
		}
	}
}

// The program's memory is listed and changed, and the file that it came from is not.
func TestPoke(t *testing.T) {
	program := goProgram(t)
	before, err := io.ReadAll(io.NewSectionReader(program, 0, 1<<30))
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, Config{Program: program, Argv: []string{"guest", "sigterm"}}, []byte{})
	if !s.g.Traced() {
		t.Skip("SKIPPED: no ptrace here")
	}
	go s.serve()
	s.await("ready") // its pages are there
	list, err := s.g.Memory()
	if err != nil {
		t.Fatal(err)
	}
	entry := s.g.Entry()
	found := false
	for _, m := range list {
		found = found || m.Exec && m.Addr <= entry && entry < m.Addr+m.Len
		if m.Len == 0 || !m.Exec && !m.Write {
			t.Errorf("%+v", m)
		}
	}
	if !found {
		t.Errorf("the entry point %#x is in none of %+v", entry, list)
	}
	ud2 := []byte{0x0f, 0x0b}
	if err := s.g.Poke(entry, ud2); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []uint64{0, 1 << 46, ^uint64(0), 1 << 63} {
		if err := s.g.Poke(addr, ud2); err == nil {
			t.Errorf("poked %#x", addr)
		}
	}
	// One that is just in a call, or has just ended, is none to strike.
	for _, tid := range s.g.TIDs() {
		err = s.g.Strike(tid, 2*time.Second, func(r *unix.PtraceRegs) (unix.Signal, error) {
			r.Rip = entry
			return 0, nil
		})
		if err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	<-s.g.Done()
	if exit := s.g.Wait(); exit.Code != 2 && exit.Signal != unix.SIGILL {
		t.Errorf("%+v: %s", exit, s.out.String())
	}
	after, err := os.ReadFile(program.Name())
	if err != nil || !bytes.Equal(before, after) {
		t.Error("the program's file was changed")
	}
	if err := s.g.Strike(1, time.Second, nil); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

func TestParseMap(t *testing.T) {
	for line, want := range map[string]bool{
		"00400000-00487000 r-xp 00000000 00:30 123 /memfd:x":       true,
		"c000000000-c000400000 rw-p 00000000 00:00 0 ":             true,
		"7ffd8000-7ffda000 rw-p 00000000 00:00 0 [stack]":          true,
		"7f0000000000-7f0001000000 rw-s 00000000 00:01 9 /memfd:g": false,
		"7ffd9000-7ffdb000 r-xp 00000000 00:00 0 [vdso]":           false,
		"zz-1 r-xp 0 0 0": false, "2000-1000 rw-p 0 0 0": false, "": false, "1000-2000 rw 0 0 0": false,
	} {
		if _, ok := parseMap([]byte(line)); ok != want {
			t.Errorf("%q: %v", line, ok)
		}
	}
}
