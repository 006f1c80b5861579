package mm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Flips reach the guest's own memory, and nobody else's: not a shared grant, and not the file that a program is mapped from.
func TestFlip(t *testing.T) {
	s, _ := newSpace(t, 4<<20)
	text := bytes.Repeat([]byte{0x11}, 2*page)
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	code, err := s.MapHost(0, 2*page, ProtRead|ProtExec, Hint, Source{FD: int(f.Fd()), Size: 2 * page, Max: ProtRead | ProtExec}, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("grant", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, page); err != nil {
		t.Fatal(err)
	}
	grant, err := s.MapHost(0, page, ProtRead|ProtWrite, Hint, Source{FD: fd, Size: page, Key: 9, Shared: true, Max: ProtRead | ProtWrite}, 0)
	if err != nil {
		t.Fatal(err)
	}
	data, err := s.MapAnon(0, 64*page, ProtRead|ProtWrite, Hint)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CopyOut(data+5, []byte{0x22}); err != nil {
		t.Fatal(err)
	}

	for _, p := range s.Code() {
		if p.Start < code || p.Start+p.Size > code+2*page {
			t.Errorf("code at %#x", p)
		}
	}
	var touched uint64
	for _, p := range s.Data() {
		if touched += p.Size; p.Start < data || p.Start+p.Size > data+64*page {
			t.Errorf("data at %#x", p)
		}
	}
	if touched == 0 || touched > around*page {
		t.Errorf("%d bytes of data were touched", touched)
	}

	var b [1]byte
	for _, c := range []struct {
		addr uint64
		was  byte
	}{{code + page + 7, 0x11}, {data + 5, 0x22}} {
		if old, err := s.Flip(c.addr, 0x80); err != nil || old != c.was {
			t.Errorf("flip at %#x: %#x, %v", c.addr, old, err)
		}
		if err := s.CopyIn(c.addr, b[:]); err != nil || b[0] != c.was^0x80 {
			t.Errorf("the guest reads %#x, %v", b[0], err)
		}
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, text) {
		t.Error("the program's file was changed")
	}
	for _, addr := range []uint64{grant, data + 60*page, 0, ^uint64(0), MaxAddress} {
		if _, err := s.Flip(addr, 1); !errors.Is(err, ErrFault) {
			t.Errorf("flip at %#x: %v", addr, err)
		}
	}
}

// What is taken is gone: the guest has what was left, and no more.
func TestTake(t *testing.T) {
	s, _ := newSpace(t, 4<<20)
	data, err := s.MapAnon(0, 4<<20, ProtRead|ProtWrite, Hint)
	if err != nil {
		t.Fatal(err)
	}
	const leave = 10 * page
	if n := s.Take(leave); n != 4<<20-leave {
		t.Errorf("took %d bytes", n)
	}
	if n := s.Take(leave); n != 0 {
		t.Errorf("took another %d bytes", n)
	}
	n := 0
	for ; ; n++ {
		if err := s.CopyOut(data+uint64(n)*page, []byte{1}); err != nil {
			break
		}
	}
	if n != leave/page {
		t.Errorf("%d pages were left", n)
	}
	if s.Take(1<<63) != 0 || s.Take(^uint64(0)) != 0 {
		t.Error("took what is not there")
	}
}
