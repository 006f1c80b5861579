package mm

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/vcpu/kvm"
)

// bench is a machine without a CPU: it keeps slots and counts flushes.
type bench struct {
	slots   map[kvm.Slot][]byte
	next    kvm.Slot
	flushes int
}

func (b *bench) AddSlot(_ kvm.GPA, mem []byte) (kvm.Slot, error) {
	b.next++
	b.slots[b.next] = mem
	return b.next, nil
}
func (b *bench) RemoveSlot(s kvm.Slot) error {
	if _, ok := b.slots[s]; !ok {
		return errors.New("no such slot")
	}
	delete(b.slots, s)
	return nil
}
func (b *bench) Flush() error                  { b.flushes++; return nil }
func (b *bench) SetRoot(uint64)                {}
func (b *bench) SystemPage(off uint64) kvm.GPA { return kvm.GPA(off) }
func (b *bench) SystemPages() int              { return 8 }

func newSpace(t testing.TB, size uint64) (*Space, *bench) {
	t.Helper()
	b := &bench{slots: make(map[kvm.Slot][]byte)}
	s, err := New(b, size)
	if err != nil {
		t.Fatal(err)
	}
	return s, b
}

// model is the obvious address space: a map of pages.
type model map[uint64]*modelPage

type modelPage struct {
	prot Prot
	data [page]byte
}

// TestModel runs random calls on a Space and on the model, and compares what they say and what memory holds.
func TestModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s, _ := newSpace(t, 32<<20)
	m := model{}
	const base, pages = uint64(0x4000_0000), 3 * perBlock
	at := func() uint64 { return base + page*r.Uint64N(pages) }
	length := func() uint64 {
		switch r.IntN(4) {
		case 0:
			return page * (1 + r.Uint64N(4))
		case 1:
			return page * (1 + r.Uint64N(pages))
		}
		return page * (1 + r.Uint64N(64))
	}
	prots := []Prot{0, ProtRead, ProtRead | ProtWrite, ProtRead | ProtExec, ProtRead | ProtWrite | ProtExec}
	all := func(addr, n uint64) bool {
		for a := addr; a < addr+n; a += page {
			if m[a] == nil {
				return false
			}
		}
		return true
	}
	for step := range 4000 {
		addr, n := at(), length()
		switch op := r.IntN(8); op {
		case 0, 1:
			p := prots[r.IntN(len(prots))]
			if r.IntN(2) == 0 {
				p = ProtRead | ProtWrite
			}
			if got, err := s.MapAnon(addr, n, p, Replace); err != nil || got != addr {
				t.Fatalf("step %d: map %#x+%#x: %#x, %v", step, addr, n, got, err)
			}
			for a := addr; a < addr+n; a += page {
				m[a] = &modelPage{prot: p}
			}
		case 2:
			if err := s.Unmap(addr, n); err != nil {
				t.Fatalf("step %d: unmap: %v", step, err)
			}
			for a := addr; a < addr+n; a += page {
				delete(m, a)
			}
		case 3:
			p := prots[r.IntN(len(prots))]
			err := s.Protect(addr, n, p)
			if (err == nil) != all(addr, n) {
				t.Fatalf("step %d: protect %#x+%#x: %v, all mapped: %v", step, addr, n, err, all(addr, n))
			}
			for a := addr; err == nil && a < addr+n; a += page {
				m[a].prot = p
			}
		case 4:
			err := s.Discard(addr, n)
			if (err == nil) != all(addr, n) {
				t.Fatalf("step %d: discard: %v", step, err)
			}
			// Linux discards up to the first hole, too.
			for a := addr; a < addr+n && m[a] != nil; a += page {
				clear(m[a].data[:])
			}
		default: // write and read across pages
			n = 1 + r.Uint64N(3*page)
			addr += r.Uint64N(page)
			want := make([]byte, n)
			readable, writable := true, true
			for a := addr &^ (page - 1); a < addr+n; a += page {
				p := m[a]
				readable = readable && p != nil && p.prot&ProtRead != 0
				writable = writable && p != nil && p.prot&ProtWrite != 0
			}
			if writable {
				for i := range want {
					want[i] = byte(r.Uint32())
				}
				if err := s.CopyOut(addr, want); err != nil {
					t.Fatalf("step %d: write: %v", step, err)
				}
				for i := range n {
					m[(addr+i)&^(page-1)].data[(addr+i)%page] = want[i]
				}
			}
			got := make([]byte, n)
			err := s.CopyIn(addr, got)
			if (err == nil) != readable {
				t.Fatalf("step %d: read %#x+%#x: %v, readable: %v", step, addr, n, err, readable)
			}
			for i := uint64(0); err == nil && i < n; i++ {
				if w := m[(addr+i)&^(page-1)].data[(addr+i)%page]; got[i] != w {
					t.Fatalf("step %d: byte at %#x is %#x, expected %#x", step, addr+i, got[i], w)
				}
			}
		}
		if s.Used() > s.Size() {
			t.Fatalf("step %d: %d of %d bytes handed out", step, s.Used(), s.Size())
		}
	}
	if err := s.Unmap(base, 2*pages*page); err != nil {
		t.Fatal(err)
	}
	if s.Used() != 0 {
		t.Errorf("%d bytes still handed out after everything was unmapped", s.Used())
	}
}

func TestReservationIsALimit(t *testing.T) {
	s, _ := newSpace(t, 4<<20)
	addr, err := s.MapAnon(0, 64<<20, ProtRead|ProtWrite, Hint)
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	touched := uint64(0)
	for ; failed == nil; touched += page {
		failed = s.Fault(addr+touched, Write)
	}
	if !errors.Is(failed, ErrNoMemory) || touched < 3<<20 || s.Used() > 4<<20 {
		t.Errorf("%v after %d bytes, %d handed out", failed, touched, s.Used())
	}
}

func TestHostileRanges(t *testing.T) {
	s, _ := newSpace(t, 4<<20)
	for _, c := range []struct {
		name       string
		addr, size uint64
		want       error
	}{
		{"nothing", MinAddress, 0, unix.EINVAL},
		{"unaligned", MinAddress + 1, page, unix.EINVAL},
		{"the null page", 0, page, unix.ENOMEM},
		{"all", MinAddress, 1<<64 - 1, unix.ENOMEM},
		{"wraps", 1<<64 - page, 2 * page, unix.ENOMEM},
		{"one page too high", MaxAddress, page, unix.ENOMEM},
		{"over the end", MaxAddress - page, 2 * page, unix.ENOMEM},
		{"the system area", 0x7fff_f000_0000, page, unix.ENOMEM},
		{"exactly at the end", MaxAddress - page, page, nil},
	} {
		if _, err := s.MapAnon(c.addr, c.size, ProtRead, Replace); !errors.Is(err, c.want) {
			t.Errorf("map %s: %v, expected %v", c.name, err, c.want)
		}
	}
	var b [16]byte
	for _, addr := range []uint64{0, 1<<64 - 8, 1<<47 - 8, 0x7fff_f000_0000, 0x7fff_f000_3000, MaxAddress - 8} {
		if err := s.CopyIn(addr, b[:]); !errors.Is(err, ErrFault) {
			t.Errorf("read at %#x: %v", addr, err)
		}
		if err := s.CopyOut(addr, b[:]); !errors.Is(err, ErrFault) {
			t.Errorf("write at %#x: %v", addr, err)
		}
	}
	if err := s.Unmap(1<<64-page, page); !errors.Is(err, unix.EINVAL) {
		t.Errorf("unmap at the top: %v", err)
	}
}

// TestGrant maps shared memory twice, unmaps and revokes it.
func TestGrant(t *testing.T) {
	s, b := newSpace(t, 4<<20)
	slots := len(b.slots)
	fd, err := unix.MemfdCreate("grant", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "grant")
	defer f.Close()
	const size = 5 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	src := Source{FD: fd, Size: size, Key: 7, Shared: true, Max: ProtRead | ProtWrite}
	one, err := s.MapHost(0, size, ProtRead|ProtWrite, Hint, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.MapHost(0, page, ProtRead, Hint, src, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	if len(b.slots) != slots+1 {
		t.Errorf("%d slots for one grant", len(b.slots)-slots)
	}
	want := []byte("across")
	if err := s.CopyOut(one+4<<20-3, want); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 4<<20-3); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the memfd holds %q, %v", got, err)
	}
	if err := s.CopyIn(two, got[:3]); err != nil || string(got[:3]) != "oss" {
		t.Errorf("second mapping reads %q, %v", got[:3], err)
	}
	for _, bad := range []struct {
		size, off uint64
		prot      Prot
	}{{page, size, ProtRead}, {size, page, ProtRead}, {page, 1, ProtRead}, {page, 0, ProtExec}, {1 << 63, 0, ProtRead}} {
		if _, err := s.MapHost(0, bad.size, bad.prot, Hint, src, bad.off); err == nil {
			t.Errorf("mapped %d bytes at %d with %v", bad.size, bad.off, bad.prot)
		}
	}
	if ok, err := s.Revoke(7); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := s.CopyIn(one+4<<20-3, got); err != nil || !bytes.Equal(got, make([]byte, len(got))) {
		t.Errorf("revoked memory reads %q, %v", got, err)
	}
	if err := s.CopyOut(one, want); err != nil {
		t.Errorf("revoked memory cannot be written: %v", err)
	}
	if ok, _ := s.Revoke(0); ok {
		t.Error("revoked memory without a key")
	}
	if err := errors.Join(s.Unmap(one, size), s.Unmap(two, page)); err != nil {
		t.Fatal(err)
	}
	if len(b.slots) != slots {
		t.Errorf("%d slots left over", len(b.slots)-slots)
	}
}

// TestPinnedMemoryIsNotReused unmaps memory that host code still writes to.
func TestPinnedMemoryIsNotReused(t *testing.T) {
	s, _ := newSpace(t, 4<<20)
	addr, err := s.MapAnon(0, 4*page, ProtRead|ProtWrite, Hint)
	if err != nil {
		t.Fatal(err)
	}
	segs, release, err := s.Segments(addr, 4*page, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	used := s.Used()
	if err := s.Unmap(addr, 4*page); err != nil {
		t.Fatal(err)
	}
	if s.Used() != used {
		t.Error("pinned pages were given back")
	}
	for _, b := range segs {
		for i := range b {
			b[i] = 0xee
		}
	}
	release()
	if s.Used() >= used {
		t.Error("pages were not given back after the pin")
	}
	next, err := s.MapAnon(0, 1<<20, ProtRead|ProtWrite, Hint)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<20)
	if err := s.CopyIn(next, b); err != nil || !bytes.Equal(b, make([]byte, 1<<20)) {
		t.Error("new memory is not zero", err)
	}
}

func TestBreakAndRemap(t *testing.T) {
	s, _ := newSpace(t, 8<<20)
	s.SetBreak(0x10_0000)
	if got := s.Break(0); got != 0x10_0000 {
		t.Errorf("break starts at %#x", got)
	}
	if got := s.Break(0x10_2345); got != 0x10_2345 {
		t.Errorf("break moved to %#x", got)
	}
	if err := s.CopyOut(0x10_2340, []byte("heap!")); err != nil {
		t.Error(err)
	}
	if got := s.Break(1 << 62); got != 0x10_2345 {
		t.Errorf("an enormous break was accepted: %#x", got)
	}
	if got := s.Break(0x10_0000); got != 0x10_0000 || s.CopyOut(0x10_0000, []byte{1}) == nil {
		t.Error("break did not shrink")
	}
	a, err := s.MapAnon(0x2000_0000, 2*page, ProtRead|ProtWrite, Replace)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.MapAnon(a+3*page, page, ProtRead, Replace); err != nil {
		t.Fatal(err)
	}
	if err := s.CopyOut(a+page-2, []byte("kept")); err != nil {
		t.Fatal(err)
	}
	if to, err := s.Remap(a, 2*page, 3*page, false); err != nil || to != a {
		t.Errorf("grow in place: %#x, %v", to, err)
	}
	if _, err := s.Remap(a, 3*page, 4*page, false); err != unix.ENOMEM {
		t.Errorf("grew over a neighbour: %v", err)
	}
	to, err := s.Remap(a, 3*page, 700*page, true)
	if err != nil || to == a {
		t.Fatalf("move: %#x, %v", to, err)
	}
	got := make([]byte, 4)
	if err := s.CopyIn(to+page-2, got); err != nil || string(got) != "kept" {
		t.Errorf("moved memory holds %q, %v", got, err)
	}
	if s.CopyIn(a, got) == nil {
		t.Error("the old place is still mapped")
	}
}
