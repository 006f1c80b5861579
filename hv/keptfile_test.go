package hv

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// polled reports whether the Go runtime waits for a descriptor of this process (proc(5), /proc/pid/fdinfo, of an epoll descriptor).
func polled(t *testing.T, fd int) bool {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if l, _ := os.Readlink("/proc/self/fd/" + e.Name()); l != "anon_inode:[eventpoll]" {
			continue
		}
		b, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			var tfd int
			if n, _ := fmt.Sscanf(line, "tfd: %d", &tfd); n == 1 && tfd == fd {
				return true
			}
		}
	}
	return false
}

// A kept doorbell is the same one, stays non-blocking, and is nothing that this process wakes up for.
func TestKeptFile(t *testing.T) {
	bell := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	ordinary := os.NewFile(uintptr(bell()), "ordinary")
	defer ordinary.Close()
	if n, err := rawFD(ordinary); err != nil || !polled(t, int(n)) {
		t.Errorf("what os.NewFile makes is not polled (%v): this test cannot tell", err)
	}

	fd := bell()
	other, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	f := KeptFile(fd, "kept")
	n, err := rawFD(f)
	if err != nil {
		t.Fatal(err)
	}
	if polled(t, int(n)) {
		t.Error("the runtime waits for it")
	}
	if _, err := f.Read(make([]byte, 8)); err == nil || !strings.Contains(err.Error(), unix.EAGAIN.Error()) {
		t.Errorf("read: %v", err)
	}
	if _, err := f.Write([]byte{7, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Error(err)
	}
	var b [8]byte
	if k, err := unix.Read(other, b[:]); k != 8 || err != nil || b[0] != 7 {
		t.Errorf("the other holder read %d bytes, %v, %v", k, b, err)
	}
	if flags, err := unix.FcntlInt(n, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("the old number is still there: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
