package vfs

import (
	"testing"

	"golang.org/x/sys/unix"
)

func bothMemories(t *testing.T, f func(t *testing.T, lend bool)) {
	t.Run("lent", func(t *testing.T) { f(t, true) })
	t.Run("copied", func(t *testing.T) { f(t, false) })
}

func TestTmpFile(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		g := newGuest(t, bare(), lend)
		fd := g.open("/tmp/a", unix.O_CREAT|unix.O_RDWR|unix.O_EXCL)
		if fd != 3 {
			t.Errorf("first descriptor is %d", fd)
		}
		g.write(fd, "hello")
		g.ok(unix.SYS_LSEEK, fd, 1, unix.SEEK_SET)
		if s := g.read(fd, 100); s != "ello" {
			t.Errorf("read %q", s)
		}
		g.fails(unix.EEXIST, unix.SYS_OPENAT, cwdArg, g.str("/tmp/a"), unix.O_CREAT|unix.O_EXCL, 0)
		g.ok(unix.SYS_CLOSE, fd)
		g.fails(unix.EBADF, unix.SYS_CLOSE, fd)
		g.fails(unix.EROFS, unix.SYS_OPENAT, cwdArg, g.str("/x"), unix.O_CREAT|unix.O_RDWR, 0)
		g.fails(unix.ENOENT, unix.SYS_OPENAT, cwdArg, g.str("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"), 0)
	})
}

func TestPipeEpoll(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		g := newGuest(t, bare(), lend)
		p := g.alloc(8)
		g.ok(unix.SYS_PIPE2, p, unix.O_NONBLOCK)
		r, w := uint64(g.u32(p)), uint64(g.u32(p+4))
		g.fails(unix.EAGAIN, unix.SYS_READ, r, p, 8)
		ep := g.ok(unix.SYS_EPOLL_CREATE1, 0)
		ev := g.bytes([]byte{unix.EPOLLIN, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
		g.ok(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, r, ev)
		out := g.alloc(120)
		if n := g.ok(unix.SYS_EPOLL_PWAIT, ep, out, 10, 0, 0, 0); n != 0 {
			t.Errorf("%d events", n)
		}
		g.write(w, "x")
		if n := g.ok(unix.SYS_EPOLL_PWAIT, ep, out, 10, 0, 0, 0); n != 1 || string(g.view(out, 12)) != string(g.view(ev, 12)) {
			t.Errorf("%d events: %x", n, g.view(out, 12))
		}
		if s := g.read(r, 10); s != "x" {
			t.Errorf("read %q", s)
		}
		g.ok(unix.SYS_CLOSE, w)
		if s := g.read(r, 10); s != "" {
			t.Errorf("read %q", s)
		}
	})
}
