//go:build linux && amd64

package process

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// counter serves the numbers of the C guest's "once" mode: each call carries its own sequence number, so a call that is
// repeated or lost shows.
type counter struct {
	t             testing.TB
	next, handler uint64
	repeated      int
	handled       uint64
}

func (k *counter) attach(s *supervisor) {
	grant := memfd(k.t, 4096)
	s.onNr[0x4701] = func(c *Call) {
		if c.Args[0] != k.next {
			k.repeated++
		}
		k.next = c.Args[0] + 1
		s.ret(c, c.Args[0])
	}
	s.onNr[0x4703] = func(c *Call) {
		if c.Args[0] != k.next {
			k.repeated++
		}
		k.next = c.Args[0] + 1
		if err := c.Install(int(grant.Fd()), 9, true); err != nil {
			k.t.Errorf("Install: %v", err)
		}
		s.ret(c, c.Args[0])
	}
	s.onNr[0x4702] = func(c *Call) {
		if c.Args[0] != k.handler {
			k.repeated++
		}
		k.handler = c.Args[0] + 1
		s.ret(c, c.Args[0])
	}
	same := map[uint64]uint64{}
	s.onNr[0x4705] = func(c *Call) {
		n := same[c.Args[0]]
		same[c.Args[0]]++
		k.next++
		s.ret(c, n)
	}
	s.onNr[0x4706] = func(c *Call) {
		k.repeated = int(c.Args[0])
		k.next -= c.Args[0]
		s.ret(c, 0)
	}
	s.onNr[0x4704] = func(c *Call) {
		k.handled = c.Args[0]
		s.ret(c, 0)
	}
}

func memfd(t testing.TB, size int64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("grant", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "grant")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSignalsDoNotRepeatCalls(t *testing.T) {
	for _, what := range []string{"once", "once-install", "same", "same-threads"} {
		t.Run(what, func(t *testing.T) {
			n := "2000"
			if env := os.Getenv("GRAIL_PROCESS_CALLS"); env != "" {
				n = env
			}
			s := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", what, n}}, nil)
			k := &counter{t: t}
			k.attach(s)
			s.serve()
			exit := s.g.Wait()
			t.Logf("%d signals handled in %d calls", k.handled, k.next)
			want := "bad 0 wrong 0 interrupted 1\n"
			if strings.HasPrefix(what, "same") {
				want = "lost 0 interrupted 1\n"
				k.handler = k.handled // its handlers make no calls
			}
			if what == "same-threads" && k.repeated > 0 && uint64(k.repeated) < 1+k.handled/200 {
				// Under a storm on several threads at once a lost answer is not always told from a new call (see lostAnswer).
				t.Logf("%d calls repeated", k.repeated)
				k.repeated = 0
			}
			if s.out.String() != want || !clean(exit) || k.repeated != 0 || fmt.Sprint(k.next) != n {
				t.Errorf("got %q, %+v, %d repeated, %d calls; want %q", s.out.String(), exit, k.repeated, k.next, want)
			}
			if k.handled != k.handler {
				t.Errorf("%d signals handled, %d calls made by handlers", k.handled, k.handler)
			}
		})
	}
}

func TestSignalEndsBlockingCall(t *testing.T) {
	t.Run("EINTR", func(t *testing.T) {
		s := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "alarm", "0"}}, nil)
		s.serve()
		if want := fmt.Sprintf("read -1 errno %d handled %d\n", unix.EINTR, unix.SIGALRM); s.out.String() != want {
			t.Errorf("got %q, want %q", s.out.String(), want)
		}
	})
	t.Run("SA_RESTART", func(t *testing.T) {
		s := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "alarm", "1"}}, nil)
		reads := 0
		s.onNr[unix.SYS_READ] = func(c *Call) {
			if reads++; reads == 2 {
				s.stdin <- []byte("x")
			}
			go s.read(c)
		}
		s.serve()
		if want := fmt.Sprintf("read 1 errno 0 handled %d\n", unix.SIGALRM); s.out.String() != want || reads != 2 {
			t.Errorf("got %q after %d reads, want %q after 2", s.out.String(), reads, want)
		}
	})
}

func TestSignalFromOutside(t *testing.T) {
	for _, what := range []string{"block", "spin"} {
		for _, noTrace := range []bool{false, true} {
			t.Run(fmt.Sprint(what, " untraced=", noTrace), func(t *testing.T) {
				s := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", what}, NoTrace: noTrace}, nil)
				go func() {
					s.await("ready")
					if err := s.g.Signal(unix.SIGURG); err != nil { // ignored by default
						t.Error(err)
					}
					if err := s.g.Signal(unix.SIGHUP); err != nil {
						t.Error(err)
					}
				}()
				s.serve()
				if exit := s.g.Wait(); exit.Signal != unix.SIGHUP || exit.Killed {
					t.Errorf("got %+v, want SIGHUP", exit)
				}
				if err := s.g.Signal(unix.SIGHUP); err != ErrGone {
					t.Errorf("signal to a dead guest: %v", err)
				}
			})
		}
	}
}

func TestStopAndContinue(t *testing.T) {
	s := start(t, Config{Program: cProgram(t, "-static"), Argv: []string{"cguest", "block"}}, nil)
	go func() {
		s.await("ready")
		for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT} {
			if err := s.g.Signal(sig); err != nil {
				t.Error(err)
			}
		}
		s.stdin <- []byte("x")
	}()
	s.serve()
	if exit := s.g.Wait(); !clean(exit) {
		t.Errorf("got %+v", exit)
	}
}

func TestKill(t *testing.T) {
	for _, what := range []string{"block", "spin", "threads 50"} {
		t.Run(what, func(t *testing.T) {
			s := start(t, Config{Program: cProgram(t, "-static"), Argv: append([]string{"cguest"}, strings.Fields(what)...)}, nil)
			go func() {
				s.mu.Lock()
				for s.out.Len() == 0 {
					s.changed.Wait()
				}
				s.mu.Unlock()
				s.g.Kill()
				s.g.Kill()
			}()
			s.serve()
			if exit := s.g.Wait(); exit.Signal != unix.SIGKILL && exit.Code != 0 {
				t.Errorf("got %+v", exit)
			}
			if err := s.g.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAbort(t *testing.T) {
	for _, what := range []string{"spin", "block", "threads 20"} {
		for _, noTrace := range []bool{false, true} {
			t.Run(fmt.Sprint(what, " untraced=", noTrace), func(t *testing.T) {
				s := start(t, Config{Program: cProgram(t, "-static"), Argv: append([]string{"cguest"}, strings.Fields(what)...), NoTrace: noTrace}, nil)
				threads := 1
				abort := func() {
					s.g.Abort()
					s.g.Abort()
				}
				if what == "threads 20" {
					threads = 21
					s.onNr[unix.SYS_WRITEV] = func(c *Call) { abort() } // unanswered: the last thing before its end
				} else {
					go func() {
						s.await("ready")
						abort()
					}()
				}
				s.serve()
				exit := s.g.Wait()
				if exit.Signal != unix.SIGKILL || !exit.Killed || exit.Crash != nil {
					t.Errorf("got %+v", exit)
				}
				if noTrace {
					threads = 0
				}
				if len(exit.Threads) != threads {
					t.Errorf("%d threads recorded, want %d", len(exit.Threads), threads)
				}
				for _, thread := range exit.Threads {
					if thread.Regs.Rip == 0 || len(thread.Code) == 0 || len(thread.Stack) == 0 {
						t.Errorf("thread %+v", thread)
					}
				}
			})
		}
	}
}
