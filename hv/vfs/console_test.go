package vfs

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/conlog"
)

func content(t *testing.T, fd int) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, st.Size)
	if _, err := unix.Pread(fd, b, 0); err != nil && len(b) > 0 {
		t.Fatal(err)
	}
	return string(b)
}

func TestConsoleOutput(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		cfg := bare()
		cfg.Stdout, cfg.Stderr = int(w.Fd()), hostFile(t, nil)
		cfg.Log = [2]int{hostFile(t, nil), hostFile(t, nil)}
		g := newGuest(t, cfg, lend)
		text := strings.Repeat("a line of the guest\n", 20000) // more than the pipe holds
		done := make(chan string)
		go func() {
			b := make([]byte, len(text))
			for n := 0; n < len(b); {
				k, err := r.Read(b[n:])
				if err != nil {
					break
				}
				n += k
			}
			done <- string(b)
		}()
		if n := g.write(1, text); n != uint64(len(text)) {
			t.Errorf("wrote %d", n)
		}
		if <-done != text {
			t.Error("the reader got something else")
		}
		g.write(2, "an error\n")
		if s := content(t, cfg.Stderr); s != "an error\n" {
			t.Errorf("stderr holds %q", s)
		}
		if s := content(t, cfg.Log[0]); s != text+"an error\n" {
			t.Errorf("the log holds %d bytes", len(s))
		}
		lines := g.t.Console()
		if len(lines) != 50 || lines[49] != "an error" || lines[0] != "a line of the guest" {
			t.Errorf("%d lines: %q", len(lines), lines)
		}
		g.fails(unix.EBADF, unix.SYS_READ, 1, g.alloc(1), 1)
		g.fails(unix.EFAULT, unix.SYS_WRITE, 1, 1, 1)
		g.fails(unix.ENOTTY, unix.SYS_IOCTL, 1, unix.TCGETS, g.alloc(64))
		g.fails(unix.ENOTTY, unix.SYS_IOCTL, 1, unix.TIOCSTI, g.alloc(64))
		r.Close()
		g.fails(unix.EPIPE, unix.SYS_WRITE, 1, g.str("x"), 1)
	})
}

func TestLogsTakeTurns(t *testing.T) {
	cfg := bare()
	cfg.Log, cfg.LogLimit = [2]int{hostFile(t, nil), hostFile(t, nil)}, 1000
	g := newGuest(t, cfg, true)
	for i := range 40 {
		g.write(1, fmt.Sprintf("%03d", i)+strings.Repeat(".", 96)+"\n")
	}
	for _, fd := range cfg.Log {
		if n := len(content(t, fd)); n != 1000 {
			t.Errorf("a log holds %d bytes", n)
		}
	}
	all := content(t, cfg.Log[0]) + content(t, cfg.Log[1])
	if !strings.Contains(all, "039...") || !strings.Contains(all, "020...") || strings.Contains(all, "019...") {
		t.Error("the logs do not hold the last 20 lines")
	}
	// The next one goes on where this one stopped.
	now := time.Now().Unix()
	for i, fd := range cfg.Log {
		unix.Ftruncate(fd, int64(300+i))
		tv := unix.Timeval{Sec: now - int64(i)}
		if err := unix.Futimes(fd, []unix.Timeval{tv, tv}); err != nil {
			t.Fatal(err)
		}
	}
	g = newGuest(t, cfg, true)
	g.write(1, "again\n")
	if s := content(t, cfg.Log[0]); len(s) != 306 || !strings.HasSuffix(s, "again\n") {
		t.Errorf("the newer log holds %d bytes", len(s))
	}
	g.write(1, strings.Repeat("x", 5000)) // larger than a log
	if s := content(t, cfg.Log[1]); len(s) != 1000 {
		t.Errorf("a log holds %d bytes", len(s))
	}
}

// Without a reader a flood is thinned out; with one it is not.
func TestFlood(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, stdout := range []int{-1, int(null.Fd()), hostFile(t, nil)} {
		cfg := bare()
		cfg.Stdout = stdout
		cfg.Log, cfg.LogLimit = [2]int{hostFile(t, nil), -1}, 64<<20
		g := newGuest(t, cfg, true)
		line := strings.Repeat("flood", 2000) + "\n"
		for range 1000 {
			g.write(1, line)
		}
		n := len(content(t, cfg.Log[0]))
		attached := stdout >= 0 && stdout != int(null.Fd())
		if attached && n != 1000*len(line) || !attached && (n < conlog.FloodBurst || n > 4*conlog.FloodBurst) {
			t.Errorf("stdout %d: the log holds %d of %d bytes", stdout, n, 1000*len(line))
		}
	}
}

// A terminal is asked, never changed.
func TestTerminal(t *testing.T) {
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal here: %v", err)
	}
	defer unix.Close(m)
	n, err := unix.IoctlGetInt(m, unix.TIOCGPTN)
	if err != nil {
		t.Skip(err)
	}
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		t.Skip(err)
	}
	s, err := unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Close(s)
	if err := unix.IoctlSetWinsize(s, unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 80}); err != nil {
		t.Fatal(err)
	}
	cfg := bare()
	cfg.Stdin, cfg.Stdout, cfg.Stderr = s, s, s
	g := newGuest(t, cfg, true)
	p := g.alloc(64)
	g.ok(unix.SYS_IOCTL, 1, unix.TCGETS, p)
	want, err := unix.IoctlGetTermios(s, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if g.u32(p) != want.Iflag || g.u32(p+12) != want.Lflag || g.view(p+17, 1)[0] != want.Cc[0] {
		t.Errorf("termios %x", g.view(p, termiosSize))
	}
	g.ok(unix.SYS_IOCTL, 0, unix.TIOCGWINSZ, p)
	if g.u32(p) != 25|80<<16 {
		t.Errorf("window %x", g.view(p, 8))
	}
	g.ok(unix.SYS_IOCTL, 0, unix.TIOCGPGRP, p)
	for _, req := range []uint64{unix.TCSETS, unix.TCSETSF, unix.TIOCSTI, unix.TIOCSPGRP, unix.TIOCSCTTY} {
		g.fails(unix.EPERM, unix.SYS_IOCTL, 0, req, p)
	}
	g.fails(unix.ENOTTY, unix.SYS_IOCTL, 0, unix.TIOCSWINSZ, p)
	g.write(0, "out\n") // a terminal is open for both
	b := make([]byte, len("out\r\n"))
	for n := 0; n < len(b); { // the line discipline may hand over a line in parts
		k, err := unix.Read(m, b[n:])
		if err != nil || k == 0 {
			t.Fatalf("read %q, then %d: %v", b[:n], k, err)
		}
		n += k
	}
	if string(b) != "out\r\n" {
		t.Errorf("%q", b)
	}
	unix.Write(m, []byte("in\n"))
	if s := g.read(0, 10); s != "in\n" {
		t.Errorf("%q", s)
	}
}
