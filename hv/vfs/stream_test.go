package vfs

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bothMemories runs f with an engine that lends its memory and with one that cannot.
func bothMemories(t *testing.T, f func(t *testing.T, lend bool)) {
	t.Run("lent", func(t *testing.T) { f(t, true) })
	t.Run("copied", func(t *testing.T) { f(t, false) })
}

func (g *guest) pipe(flags uint64) (r, w uint64) {
	p := g.alloc(8)
	g.ok(unix.SYS_PIPE2, p, flags)
	return uint64(g.u32(p)), uint64(g.u32(p + 4))
}

func TestDescriptorNumbers(t *testing.T) {
	g := newGuest(t, bare(), true)
	if fd := g.open("/dev/null", 0); fd != 3 {
		t.Fatalf("first descriptor %d", fd)
	}
	g.ok(unix.SYS_CLOSE, 1)
	if fd := g.ok(unix.SYS_DUP, 3); fd != 1 {
		t.Errorf("lowest free is %d", fd)
	}
	if fd := g.ok(unix.SYS_FCNTL, 3, unix.F_DUPFD, 100); fd != 100 {
		t.Errorf("F_DUPFD gives %d", fd)
	}
	if fd := g.ok(unix.SYS_DUP2, 3, 3); fd != 3 {
		t.Errorf("dup2 to itself gives %d", fd)
	}
	g.fails(unix.EINVAL, unix.SYS_DUP3, 3, 3, 0)
	g.fails(unix.EINVAL, unix.SYS_DUP3, 3, 4, 1)
	g.fails(unix.EBADF, unix.SYS_DUP2, 3, MaxFDs)
	g.fails(unix.EBADF, unix.SYS_DUP2, 3, ^uint64(0))
	g.fails(unix.EBADF, unix.SYS_DUP2, 55, 3)
	g.fails(unix.EINVAL, unix.SYS_FCNTL, 3, unix.F_DUPFD, MaxFDs)
	g.ok(unix.SYS_FCNTL, 3, unix.F_SETFD, unix.FD_CLOEXEC)
	if v := g.ok(unix.SYS_FCNTL, 3, unix.F_GETFD); v != 1 {
		t.Errorf("F_GETFD %d", v)
	}
	if v := g.ok(unix.SYS_FCNTL, 100, unix.F_GETFD); v != 0 {
		t.Errorf("F_GETFD of a duplicate %d", v)
	}
	// dup2 over an open descriptor closes it.
	r, w := g.pipe(0)
	g.ok(unix.SYS_DUP2, 3, w)
	if s := g.read(r, 1); s != "" {
		t.Errorf("read %q", s)
	}
	g.ok(unix.SYS_CLOSE_RANGE, 3, 1<<32-1, 0)
	g.fails(unix.EBADF, unix.SYS_FCNTL, 3, unix.F_GETFD)
	g.fails(unix.EINVAL, unix.SYS_CLOSE_RANGE, 5, 3, 0)
	for fd := uint64(3); fd < MaxFDs; fd++ {
		if got := g.ok(unix.SYS_DUP, 0); got != fd {
			t.Fatalf("dup gives %d, not %d", got, fd)
		}
	}
	g.fails(unix.EMFILE, unix.SYS_DUP, 0)
	g.fails(unix.EMFILE, unix.SYS_PIPE, g.alloc(8))
	g.fails(unix.EMFILE, unix.SYS_EVENTFD2, 0, 0)
}

func TestPipe(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		g := newGuest(t, bare(), lend)
		r, w := g.pipe(0)
		// More than a pipe holds, so that both sides wait for each other.
		big := strings.Repeat("0123456789abcdef", 20000)
		g2 := g.thread()
		var wg sync.WaitGroup
		wg.Go(func() {
			p := g2.bytes([]byte(big))
			if n := g2.ok(unix.SYS_WRITE, w, p, uint64(len(big))); n != uint64(len(big)) {
				t.Errorf("wrote %d", n)
			}
			g2.ok(unix.SYS_CLOSE, w)
		})
		var got strings.Builder
		for {
			s := g.read(r, 50000)
			if s == "" {
				break
			}
			got.WriteString(s)
		}
		wg.Wait()
		if got.String() != big {
			t.Error("contents differ")
		}
		g.fails(unix.EBADF, unix.SYS_WRITE, r, g.alloc(1), 1)
		r, w = g.pipe(unix.O_NONBLOCK)
		g.fails(unix.EAGAIN, unix.SYS_READ, r, g.alloc(1), 1)
		g.fails(unix.EBADF, unix.SYS_READ, w, g.alloc(1), 1)
		g.fails(unix.ESPIPE, unix.SYS_LSEEK, r, 0, 0)
		g.fails(unix.ESPIPE, unix.SYS_PREAD64, r, g.alloc(1), 1, 0)
		g.fails(unix.EFAULT, unix.SYS_WRITE, w, 1, 1)
		g.ok(unix.SYS_WRITE, w, 1, 0)
		g.write(w, "12345")
		g.ok(unix.SYS_IOCTL, r, unix.TIOCINQ, g.top+fakeBase)
		if n := g.u32(g.top + fakeBase); n != 5 {
			t.Errorf("FIONREAD says %d", n)
		}
		g.ok(unix.SYS_CLOSE, r)
		g.fails(unix.EPIPE, unix.SYS_WRITE, w, g.str("x"), 1)
		// O_NONBLOCK set later.
		r, w = g.pipe(0)
		g.ok(unix.SYS_FCNTL, r, unix.F_SETFL, unix.O_NONBLOCK)
		g.fails(unix.EAGAIN, unix.SYS_READ, r, g.alloc(1), 1)
		if fl := g.ok(unix.SYS_FCNTL, r, unix.F_GETFL); fl&unix.O_NONBLOCK == 0 || fl&unix.O_ACCMODE != unix.O_RDONLY {
			t.Errorf("F_GETFL %#x", fl)
		}
		on := g.bytes([]byte{1, 0, 0, 0})
		g.ok(unix.SYS_IOCTL, w, fionBio, on)
		full := g.alloc(1 << 17)
		n := g.ok(unix.SYS_WRITE, w, full, 1<<17)
		if n == 0 || n >= 1<<17 {
			t.Errorf("a full pipe took %d", n)
		}
		g.fails(unix.EAGAIN, unix.SYS_WRITE, w, full, 1)
	})
}

// A thread that is interrupted gets EINTR, and what it has written so far counts.
func TestInterrupted(t *testing.T) {
	g := newGuest(t, bare(), true)
	g.c.Wait = pollWaiter{limit: time.Millisecond}
	r, w := g.pipe(0)
	g.fails(unix.EINTR, unix.SYS_READ, r, g.alloc(1), 1)
	p := g.alloc(1 << 17)
	if n := g.ok(unix.SYS_WRITE, w, p, 1<<17); n != 1<<16 {
		t.Errorf("wrote %d before the interruption", n)
	}
	g.fails(unix.EINTR, unix.SYS_WRITE, w, p, 1)
	e := g.ok(unix.SYS_EVENTFD2, 0, 0)
	g.fails(unix.EINTR, unix.SYS_READ, e, p, 8)
	ep := g.ok(unix.SYS_EPOLL_CREATE1, 0)
	g.fails(unix.EINTR, unix.SYS_EPOLL_WAIT, ep, p, 1, ^uint64(0))
	g.fails(unix.EINTR, unix.SYS_POLL, 0, 0, ^uint64(0))
	g.fails(unix.EINTR, unix.SYS_SELECT, 0, 0, 0, 0, 0)
}

// A descriptor closed by one thread while another waits on it stays what it was for the waiter.
func TestCloseUnderRead(t *testing.T) {
	g := newGuest(t, bare(), true)
	r, w := g.pipe(0)
	g2 := g.thread()
	got := make(chan string)
	go func() { got <- g2.read(r, 10) }()
	f, _ := g.t.get(r)
	defer f.put()
	for f.refs.Load() < 3 { // its slot, ours, the reader's
	}
	g.ok(unix.SYS_CLOSE, r)
	if fd := g.open("/dev/zero", 0); fd != r {
		t.Errorf("number %d was not reused", r)
	}
	g.write(w, "late")
	if s := <-got; s != "late" {
		t.Errorf("the reader got %q", s)
	}
}

// waiterFunc stands in for a Waiter whose waits something happens in.
type waiterFunc func(fds []unix.PollFd) (int, error)

func (f waiterFunc) Poll(fds []unix.PollFd, _ time.Duration) (int, error) { return f(fds) }

func TestEventfd(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		g := newGuest(t, bare(), lend)
		e := g.ok(unix.SYS_EVENTFD2, 3, unix.EFD_NONBLOCK)
		p := g.alloc(16)
		if n := g.ok(unix.SYS_READ, e, p, 16); n != 8 || g.view(p, 1)[0] != 3 {
			t.Errorf("read %d: %x", n, g.view(p, 8))
		}
		g.fails(unix.EAGAIN, unix.SYS_READ, e, p, 8)
		g.fails(unix.EINVAL, unix.SYS_READ, e, p, 7)
		g.fails(unix.EINVAL, unix.SYS_WRITE, e, p, 7)
		g.fails(unix.EFAULT, unix.SYS_WRITE, e, 0, 8)
		binary.LittleEndian.PutUint64(g.view(p, 8), ^uint64(0))
		g.fails(unix.EINVAL, unix.SYS_WRITE, e, p, 8)
		binary.LittleEndian.PutUint64(g.view(p, 8), ^uint64(0)-1)
		g.ok(unix.SYS_WRITE, e, p, 8)
		g.fails(unix.EAGAIN, unix.SYS_WRITE, e, p, 8)
		// A number that does not fit waits for a reader, although the descriptor polls writable.
		slow := g.ok(unix.SYS_EVENTFD2, 1, 0)
		reader := g.thread()
		g.c.Wait = waiterFunc(func(fds []unix.PollFd) (int, error) {
			if len(fds) != 0 {
				t.Error("a full counter is polled for: that would be a busy loop")
			}
			reader.ok(unix.SYS_READ, slow, reader.alloc(8), 8)
			return 0, nil
		})
		g.ok(unix.SYS_WRITE, slow, p, 8)
		g.c.Wait = pollWaiter{}
		s := g.ok(unix.SYS_EVENTFD2, 2, unix.EFD_SEMAPHORE|unix.EFD_NONBLOCK)
		g.ok(unix.SYS_READ, s, p, 8)
		g.ok(unix.SYS_READ, s, p, 8)
		g.fails(unix.EAGAIN, unix.SYS_READ, s, p, 8)
		g.fails(unix.EINVAL, unix.SYS_EVENTFD2, 0, 1<<20)
	})
}

func TestVectors(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		g := newGuest(t, bare(), lend)
		iov := func(v ...uint64) uint64 {
			b := make([]byte, 8*len(v))
			for i, x := range v {
				binary.LittleEndian.PutUint64(b[8*i:], x)
			}
			return g.bytes(b)
		}
		fd := g.open("/tmp/v", unix.O_CREAT|unix.O_RDWR)
		a, b := g.str("hello "), g.str("world")
		if n := g.ok(unix.SYS_WRITEV, fd, iov(a, 6, 0, 0, b, 5), 3); n != 11 {
			t.Errorf("wrote %d", n)
		}
		x, y := g.alloc(4), g.alloc(100)
		if n := g.ok(unix.SYS_PREADV, fd, iov(x, 4, y, 100), 2, 1); n != 10 || string(g.view(x, 4))+string(g.view(y, 6)) != "ello world" {
			t.Errorf("preadv %d %q %q", n, g.view(x, 4), g.view(y, 6))
		}
		g.ok(unix.SYS_PWRITEV, fd, iov(a, 2), 1, 20)
		g.ok(unix.SYS_PREADV2, fd, iov(x, 4), 1, ^uint64(0), 0, 0)
		g.fails(unix.EOPNOTSUPP, unix.SYS_PREADV2, fd, iov(x, 4), 1, 0, 0, 8)
		g.fails(unix.EINVAL, unix.SYS_READV, fd, iov(x, 4), 1025)
		g.fails(unix.EINVAL, unix.SYS_READV, fd, iov(x, 1<<63), 1)
		g.fails(unix.EINVAL, unix.SYS_PREADV, fd, iov(x, 1), 1, 1<<63)
		g.fails(unix.EFAULT, unix.SYS_READV, fd, 8, 1)
		g.ok(unix.SYS_READV, fd, 8, 0)
		// What precedes a bad range is served.
		g.ok(unix.SYS_LSEEK, fd, 0, 0)
		if n := g.ok(unix.SYS_READV, fd, iov(x, 4, 16, 4), 2); n != 4 {
			t.Errorf("readv up to a fault: %d", n)
		}
		r, w := g.pipe(0)
		if n := g.ok(unix.SYS_WRITEV, w, iov(a, 6, 16, 4), 2); n != 6 {
			t.Errorf("writev up to a fault: %d", n)
		}
		if s := g.read(r, 20); s != "hello " {
			t.Errorf("%q", s)
		}
		// 1,024 vectors of enormous length do not add up beyond the limit of one call.
		huge := make([]uint64, 2048)
		for i := range 1024 {
			huge[2*i], huge[2*i+1] = x, 1<<62
		}
		g.ok(unix.SYS_FCNTL, w, unix.F_SETFL, unix.O_NONBLOCK)
		g.call(unix.SYS_WRITEV, w, iov(huge...), 1024)
	})
}

func (g *guest) pollfds(v ...int32) uint64 { // fd, events pairs
	b := make([]byte, 4*len(v))
	for i := 0; i < len(v); i += 2 {
		binary.LittleEndian.PutUint32(b[4*i:], uint32(v[i]))
		binary.LittleEndian.PutUint32(b[4*i+4:], uint32(v[i+1]))
	}
	return g.bytes(b)
}

func TestPoll(t *testing.T) {
	g := newGuest(t, bare(), true)
	r, w := g.pipe(0)
	null := g.open("/dev/null", unix.O_RDWR)
	p := g.pollfds(int32(r), unix.POLLIN, int32(w), unix.POLLOUT, int32(null), unix.POLLIN, 500, unix.POLLIN, -1, unix.POLLIN)
	rev := func(i int) uint16 { return binary.LittleEndian.Uint16(g.view(p+uint64(8*i)+6, 2)) }
	if n := g.ok(unix.SYS_POLL, p, 5, 0); n != 3 {
		t.Errorf("%d ready", n)
	}
	for i, want := range []uint16{0, unix.POLLOUT, unix.POLLIN, unix.POLLNVAL, 0} {
		if rev(i) != want {
			t.Errorf("revents %d is %#x, want %#x", i, rev(i), want)
		}
	}
	g.write(w, "x")
	if n := g.ok(unix.SYS_PPOLL, p, 1, 0, 0, 0); n != 1 || rev(0) != unix.POLLIN {
		t.Errorf("%d ready, %#x", n, rev(0))
	}
	ts := g.bytes(make([]byte, 16))
	g.read(r, 1)
	if n := g.ok(unix.SYS_PPOLL, p, 1, ts, 0, 0); n != 0 {
		t.Errorf("%d ready", n)
	}
	g.fails(unix.EINVAL, unix.SYS_POLL, p, MaxFDs+1, 0)
	g.fails(unix.EFAULT, unix.SYS_POLL, 8, 1, 0)
	binary.LittleEndian.PutUint64(g.view(ts+8, 8), 1e9)
	g.fails(unix.EINVAL, unix.SYS_PPOLL, p, 1, ts, 0, 0)
	// The mask is put in place for the wait, and back.
	var calls []string
	g.c.Mask = func(set uint64) func() {
		calls = append(calls, fmt.Sprintf("set %#x", set))
		return func() { calls = append(calls, "restore") }
	}
	mask := g.bytes([]byte{0x10, 0, 0, 0, 0, 0, 0, 0})
	clear(g.view(ts, 16))
	g.ok(unix.SYS_PPOLL, p, 1, ts, mask, 8)
	g.fails(unix.EINVAL, unix.SYS_PPOLL, p, 1, ts, mask, 9)
	if s := strings.Join(calls, ","); s != "set 0x10,restore" {
		t.Error(s)
	}
	// Without descriptors it is a sleep.
	began := time.Now()
	g.ok(unix.SYS_POLL, 0, 0, 20)
	if d := time.Since(began); d < 15*time.Millisecond {
		t.Errorf("slept %v", d)
	}
}

func TestSelect(t *testing.T) {
	g := newGuest(t, bare(), true)
	r, w := g.pipe(0)
	in, out := g.alloc(128), g.alloc(128)
	set := func(p, fd uint64) { clear(g.view(p, 128)); g.view(p, 128)[fd/8] = 1 << (fd % 8) }
	set(in, r)
	set(out, w)
	if n := g.ok(unix.SYS_SELECT, 10, in, out, 0, 0); n != 1 || g.view(in, 128)[r/8] != 0 || g.view(out, 128)[w/8] == 0 {
		t.Errorf("%d ready", n)
	}
	g.ok(unix.SYS_CLOSE, w)
	set(in, r)
	if n := g.ok(unix.SYS_PSELECT6, 10, in, 0, 0, 0, 0); n != 1 {
		t.Errorf("%d ready after the other end closed", n)
	}
	set(in, w)
	g.fails(unix.EBADF, unix.SYS_SELECT, 10, in, 0, 0, 0)
	g.fails(unix.EINVAL, unix.SYS_SELECT, ^uint64(0), in, 0, 0, 0)
	tv := g.bytes(make([]byte, 16))
	set(in, r)
	if n := g.ok(unix.SYS_SELECT, 1<<30, 0, 0, 0, tv); n != 0 {
		t.Errorf("%d ready", n)
	}
	binary.LittleEndian.PutUint64(g.view(tv, 8), 1<<63)
	g.fails(unix.EINVAL, unix.SYS_SELECT, 0, 0, 0, 0, tv)
}

func TestEpoll(t *testing.T) {
	g := newGuest(t, bare(), true)
	r, w := g.pipe(unix.O_NONBLOCK)
	ep := g.ok(unix.SYS_EPOLL_CREATE1, unix.EPOLL_CLOEXEC)
	ev := func(events uint32, data uint64) uint64 {
		b := make([]byte, 12)
		binary.LittleEndian.PutUint32(b, events)
		binary.LittleEndian.PutUint64(b[4:], data)
		return g.bytes(b)
	}
	out := g.alloc(12 * 8)
	wait := func() string {
		n := g.ok(unix.SYS_EPOLL_PWAIT, ep, out, 8, 0, 0, 0)
		var s []string
		for i := range int(n) {
			b := g.view(out+uint64(12*i), 12)
			s = append(s, fmt.Sprintf("%x:%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint64(b[4:])))
		}
		return strings.Join(s, " ")
	}
	g.ok(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, r, ev(unix.EPOLLIN, 0x1122334455667788))
	g.fails(unix.EEXIST, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, r, ev(unix.EPOLLIN, 1))
	g.fails(unix.ENOENT, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_MOD, w, ev(unix.EPOLLIN, 1))
	g.fails(unix.ENOENT, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_DEL, w, 0)
	g.fails(unix.EINVAL, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, ep, ev(1, 1))
	g.fails(unix.EINVAL, unix.SYS_EPOLL_CTL, r, unix.EPOLL_CTL_ADD, w, ev(1, 1))
	g.fails(unix.EPERM, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, g.open("/tmp/f", unix.O_CREAT|unix.O_RDWR), ev(1, 1))
	g.fails(unix.EPERM, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, 0, ev(1, 1)) // /dev/null, in effect
	g.fails(unix.EBADF, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, 99, ev(1, 1))
	g.fails(unix.EFAULT, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, w, 1)
	g.fails(unix.EINVAL, unix.SYS_EPOLL_WAIT, ep, out, 0, 0)
	g.fails(unix.EINVAL, unix.SYS_EPOLL_WAIT, r, out, 1, 0)
	if s := wait(); s != "" {
		t.Error(s)
	}
	g.write(w, "x")
	if s := wait(); s != "1:1122334455667788" {
		t.Error(s)
	}
	// A duplicate is an entry of its own, although the host descriptor is the same.
	d := g.ok(unix.SYS_DUP, r)
	g.ok(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, d, ev(unix.EPOLLIN, 2))
	if s := wait(); s != "1:1122334455667788 1:2" && s != "1:2 1:1122334455667788" {
		t.Error(s)
	}
	// Closing one of two descriptors leaves its entry; closing the last removes all, whoever else holds the pipe.
	g.ok(unix.SYS_CLOSE, r)
	if s := wait(); len(strings.Fields(s)) != 2 {
		t.Error(s)
	}
	g.ok(unix.SYS_CLOSE, d)
	if s := wait(); s != "" {
		t.Error(s)
	}
	// Edge-triggered, one-shot, modified.
	e := g.ok(unix.SYS_EVENTFD2, 1, unix.EFD_NONBLOCK)
	g.ok(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, e, ev(unix.EPOLLIN|unix.EPOLLET, 3))
	if s := wait() + "," + wait(); s != "1:3," {
		t.Error(s)
	}
	g.ok(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_MOD, e, ev(unix.EPOLLIN|unix.EPOLLONESHOT, 4))
	if s := wait() + "," + wait(); s != "1:4," {
		t.Error(s)
	}
	// Nested, and a wait with a timeout that runs out.
	outer := g.ok(unix.SYS_EPOLL_CREATE, 1)
	g.ok(unix.SYS_EPOLL_CTL, outer, unix.EPOLL_CTL_ADD, ep, ev(unix.EPOLLIN, 5))
	g.ok(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_MOD, e, ev(unix.EPOLLIN, 4))
	if n := g.ok(unix.SYS_EPOLL_WAIT, outer, out, 8, ^uint64(0)); n != 1 {
		t.Errorf("%d events of a nested instance", n)
	}
	g.fails(unix.ELOOP, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, outer, ev(unix.EPOLLIN, 6))
	g.ok(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_DEL, e, 0)
	began := time.Now()
	if n := g.ok(unix.SYS_EPOLL_WAIT, ep, out, 8, 20); n != 0 || time.Since(began) < 15*time.Millisecond {
		t.Errorf("%d events after %v", n, time.Since(began))
	}
	ts := make([]byte, 16)
	binary.LittleEndian.PutUint64(ts[8:], 1e6)
	g.ok(unix.SYS_EPOLL_PWAIT2, ep, out, 8, g.bytes(ts), 0, 0)
	g.ok(unix.SYS_CLOSE, ep) // while it is in another instance
	g.ok(unix.SYS_CLOSE, e)
}

func TestDevices(t *testing.T) {
	g := newGuest(t, bare(), true)
	p := g.alloc(100000)
	for i := range g.view(p, 100000) {
		g.view(p, 100000)[i] = 7
	}
	zero := g.open("/dev/zero", unix.O_RDWR)
	if n := g.ok(unix.SYS_READ, zero, p, 100000); n != 100000 || strings.Trim(string(g.view(p, 100000)), "\x00") != "" {
		t.Errorf("/dev/zero gave %d bytes", n)
	}
	rnd := g.open("/dev/urandom", 0)
	if n := g.ok(unix.SYS_READ, rnd, p, 100000); n != 100000 || strings.Count(string(g.view(p, 100000)), "\x00") > 1000 {
		t.Errorf("/dev/urandom gave %d bytes", n)
	}
	null := g.open("/dev/null", unix.O_RDWR|unix.O_TRUNC)
	if n := g.ok(unix.SYS_WRITE, null, p, 1000); n != 1000 {
		t.Errorf("/dev/null took %d", n)
	}
	if s := g.read(null, 10); s != "" {
		t.Errorf("/dev/null gave %q", s)
	}
	g.fails(unix.ENOSPC, unix.SYS_WRITE, g.open("/dev/full", unix.O_WRONLY), p, 1)
	g.fails(unix.EFAULT, unix.SYS_READ, zero, 1, 10)
	g.fails(unix.EFAULT, unix.SYS_READ, rnd, 1, 10)
	g.ok(unix.SYS_LSEEK, null, 100, unix.SEEK_SET)
	g.fails(unix.ENOTTY, unix.SYS_IOCTL, null, unix.TCGETS, p)
	st := g.alloc(144)
	g.ok(unix.SYS_FSTAT, null, st)
	if g.u32(st+24) != unix.S_IFCHR|0o666 || g.u32(st+40) != uint32(unix.Mkdev(1, 3)) {
		t.Errorf("/dev/null's mode %o, device %#x", g.u32(st+24), g.u32(st+40))
	}
}

func TestSendfile(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		body := strings.Repeat("body", 50000)
		g := newGuest(t, withFiles(t, archive(t, []member{{name: "f", body: body}})), lend)
		in, out := g.open("/f", 0), g.open("/tmp/o", unix.O_CREAT|unix.O_RDWR)
		if n := g.ok(unix.SYS_SENDFILE, out, in, 0, 1<<30); n != uint64(len(body)) {
			t.Errorf("sent %d", n)
		}
		p := g.alloc(len(body))
		g.ok(unix.SYS_PREAD64, out, p, uint64(len(body)), 0)
		if string(g.view(p, len(body))) != body {
			t.Error("contents differ")
		}
		if n := g.ok(unix.SYS_SENDFILE, out, in, 0, 10); n != 0 {
			t.Errorf("%d at the end", n)
		}
		off := g.bytes([]byte{4, 0, 0, 0, 0, 0, 0, 0})
		r, w := g.pipe(0)
		g.ok(unix.SYS_SENDFILE, w, in, off, 6)
		if s := g.read(r, 10); s != "bodybo" || g.u32(off) != 10 {
			t.Errorf("%q, offset %d", s, g.u32(off))
		}
		g.fails(unix.EINVAL, unix.SYS_SENDFILE, w, r, 0, 1)
		g.fails(unix.EBADF, unix.SYS_SENDFILE, in, in, 0, 1)
		g.fails(unix.EINVAL, unix.SYS_SENDFILE, out, out, 0, 1)
		if n := g.ok(unix.SYS_COPY_FILE_RANGE, in, off, out, off, 10); n != 10 {
			t.Errorf("copied %d", n)
		}
	})
}

func TestStandardInput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	cfg := bare()
	cfg.Stdin = int(r.Fd())
	g := newGuest(t, cfg, true)
	flags, _ := unix.FcntlInt(r.Fd(), unix.F_GETFL, 0)
	g.ok(unix.SYS_FCNTL, 0, unix.F_SETFL, unix.O_NONBLOCK)
	if now, _ := unix.FcntlInt(r.Fd(), unix.F_GETFL, 0); now != flags {
		t.Errorf("the host descriptor's flags changed from %#x to %#x", flags, now)
	}
	g.fails(unix.EAGAIN, unix.SYS_READ, 0, g.alloc(1), 1)
	w.Write([]byte("line\n"))
	if s := g.read(0, 100); s != "line\n" {
		t.Errorf("%q", s)
	}
	g.fails(unix.EBADF, unix.SYS_WRITE, 0, g.alloc(1), 1)
	// From a file, it can be sought.
	cfg.Stdin = hostFile(t, []byte("0123456789"))
	g = newGuest(t, cfg, true)
	g.ok(unix.SYS_LSEEK, 0, 4, unix.SEEK_SET)
	if s := g.read(0, 3); s != "456" {
		t.Errorf("%q", s)
	}
	st := g.alloc(144)
	g.ok(unix.SYS_FSTAT, 0, st)
	if g.u32(st+24)&unix.S_IFMT != unix.S_IFREG || g.u32(st+48) != 10 {
		t.Error("stat does not show a file")
	}
	if n := g.ok(unix.SYS_POLL, g.pollfds(0, unix.POLLIN), 1, ^uint64(0)); n != 1 {
		t.Error("a file is not ready")
	}
	// Without one, it is at its end.
	g = newGuest(t, bare(), true)
	if s := g.read(0, 10); s != "" {
		t.Errorf("%q", s)
	}
}
