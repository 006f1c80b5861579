package mm

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBoundModel has a guest map, write, discard and lose memory at random while the host asks for it, and compares what it reads with what it wrote, what is taken with what the host
// says, and what is used with the bound.
func TestBoundModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	for _, reserved := range []uint64{0, 2 << 20, 6 << 20} {
		s, _ := newSpace(t, 32<<20)
		if err := s.Reserve(reserved, nil); err != nil {
			t.Fatal(err)
		}
		type pageState struct {
			first byte
			taken bool
		}
		m := map[uint64]*pageState{}
		const base, pages = uint64(0x4000_0000), 4 * perBlock
		for step := range 1500 {
			addr, n := base+page*r.Uint64N(pages), page*(1+r.Uint64N(300))
			switch r.IntN(8) {
			case 0, 1:
				if _, err := s.MapAnon(addr, n, ProtRead|ProtWrite, Replace); err != nil {
					t.Fatalf("step %d: map: %v", step, err)
				}
				for a := addr; a < addr+n; a += page {
					m[a] = &pageState{}
				}
				if r.IntN(3) == 0 {
					if err := s.Expendable(addr, n, true); err != nil {
						t.Fatalf("step %d: expendable: %v", step, err)
					}
				}
			case 2:
				if err := s.Unmap(addr, n); err != nil {
					t.Fatalf("step %d: unmap: %v", step, err)
				}
				for a := addr; a < addr+n; a += page {
					delete(m, a)
				}
			case 3:
				_ = s.Discard(addr, n) // up to the first hole
				for a := addr; a < addr+n && m[a] != nil; a += page {
					m[a].first = 0
				}
			case 4: // the host asks, the guest gives some or nothing, and the host takes
				used := s.Used()
				bound := r.Uint64N(used + page)
				u := s.Ask(bound)
				if u.Bound < reserved || u.Used > used {
					t.Fatalf("step %d: asked for a bound of %d with %d reserved: %+v, %d used before", step, bound, reserved, u, used)
				}
				if !s.Enforce() {
					target := u.Bound - min(u.Bound, r.Uint64N(1<<20))
					taken := s.Repossess(target, nil)
					if now := s.Used(); now > u.Bound || u.Used-now != taken {
						t.Fatalf("step %d: took %d of %d, %d are used and the bound is %d", step, taken, u.Used, now, u.Bound)
					}
				}
				list, all := s.Taken(1 << 20)
				if all != len(list) {
					t.Fatalf("step %d: %d pieces of %d", step, len(list), all)
				}
				for _, p := range list {
					for a := p.Start; a < p.Start+p.Size; a += page {
						if m[a] == nil {
							t.Fatalf("step %d: %#x was taken and is not mapped", step, a)
						}
						m[a].taken = true
					}
				}
				s.Ask(s.Size())
				s.Enforce()
			case 5: // the host reserves more or less
				reserved = 2 << 20 * r.Uint64N(6)
				told := uint64(1)
				if err := s.Reserve(reserved, func(done uint64) { told = done }); err != nil || told != reserved || s.Usage().Reserved != reserved {
					t.Fatalf("step %d: reserve %d: told %d, %v, %+v", step, reserved, told, err, s.Usage())
				}
			default:
				p := m[addr]
				b := []byte{byte(1 + r.IntN(255))}
				err := s.CopyOut(addr, b)
				if (err == nil) != (p != nil && !p.taken) {
					t.Fatalf("step %d: write at %#x: %v, %+v", step, addr, err, p)
				}
				if err == nil {
					p.first = b[0]
				}
			}
			a := base + page*r.Uint64N(pages)
			p, b := m[a], []byte{0}
			err := s.CopyIn(a, b)
			if (err == nil) != (p != nil && !p.taken) || err == nil && b[0] != p.first {
				t.Fatalf("step %d: at %#x: %d, %v; expected %+v", step, a, b[0], err, p)
			}
			if p != nil && p.taken && !errors.Is(s.Fault(a, Read), ErrTaken) {
				t.Fatalf("step %d: a fault at %#x does not say that it was taken", step, a)
			}
			if have := s.ram.used + s.ram.kept; have != max(s.ram.used, reserved) {
				t.Fatalf("step %d: host memory for %d bytes, %d reserved and %d used", step, have, reserved, s.ram.used)
			}
		}
		if err := s.Unmap(base, 2*pages*page); err != nil {
			t.Fatal(err)
		}
		if s.ram.used != 0 || s.ram.kept != reserved {
			t.Errorf("%d bytes reserved: %d used and %d kept after everything was unmapped", reserved, s.ram.used, s.ram.kept)
		}
		if left := resident(t, s.ram.mem); left < reserved || left > reserved+large {
			t.Errorf("%d bytes reserved: the host has %d for a guest that uses nothing", reserved, left)
		}
		if list, all := s.Taken(1); all != 0 {
			t.Errorf("%v are still taken", list)
		}
	}
}

// TestReserve looks at the host's memory of a guest that has a reservation.
func TestReserve(t *testing.T) {
	s, _ := newSpace(t, 16<<20)
	var steps []uint64
	if err := s.Reserve(5<<20, func(done uint64) { steps = append(steps, done) }); err != nil {
		t.Fatal(err)
	}
	const reserved = 6 << 20
	if got := resident(t, s.ram.mem); got != reserved || len(steps) == 0 || steps[len(steps)-1] != reserved {
		t.Errorf("%d bytes have host memory, told %v", got, steps)
	}
	if u := s.Usage(); u.Used != 0 || u.Reserved != reserved {
		t.Errorf("%+v", u)
	}
	if u := s.Ask(1 << 20); u.Bound != reserved {
		t.Errorf("asked to keep less than is reserved: %+v", u)
	}
	if err := s.Reserve(12<<20, nil); err != nil || resident(t, s.ram.mem) != 12<<20 {
		t.Errorf("reserved more: %v, %d bytes have host memory", err, resident(t, s.ram.mem))
	}
	if err := s.Reserve(reserved, nil); err != nil || resident(t, s.ram.mem) != reserved {
		t.Errorf("reserved less: %v, %d bytes have host memory", err, resident(t, s.ram.mem))
	}
	if err := s.Reserve(1<<40, nil); err == nil {
		t.Error("more than there is was reserved")
	}
	s.Ask(s.Size())
	s.Enforce()
	addr, err := s.MapAnon(0, 10<<20, ProtRead|ProtWrite, Hint)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, addr, 4<<20)
	if got := resident(t, s.ram.mem); got != reserved {
		t.Errorf("%d bytes have host memory for a guest within its reservation", got)
	}
	fill(t, s, addr, 10<<20)
	if got := resident(t, s.ram.mem); got != 10<<20 {
		t.Errorf("%d bytes have host memory for a guest that uses 10 MiB", got)
	}
	if err := s.Discard(addr, 10<<20); err != nil {
		t.Fatal(err)
	}
	if got := resident(t, s.ram.mem); got != reserved || s.Used() != 0 {
		t.Errorf("%d bytes have host memory and %d are used after everything was discarded", got, s.Used())
	}
	b := make([]byte, 10<<20)
	if err := s.CopyIn(addr, b); err != nil || !bytes.Equal(b, make([]byte, len(b))) {
		t.Error("what was discarded is not zero", err)
	}
}

// fill writes to every page.
func fill(t *testing.T, s *Space, addr, n uint64) {
	t.Helper()
	for off := uint64(0); off < n; off += page {
		if err := s.CopyOut(addr+off, []byte{byte(off>>12) | 1}); err != nil {
			t.Fatalf("write at +%#x: %v", off, err)
		}
	}
}

// TestAskCountsWhatWasGiven: what the guest has discarded before it was asked is given back, and what it has used again since is not.
func TestAskCountsWhatWasGiven(t *testing.T) {
	s, b := newSpace(t, 16<<20)
	addr, err := s.MapAnon(0, 8<<20, ProtRead|ProtWrite, Hint)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, addr, 8<<20)
	if err := s.Discard(addr, 4<<20); err != nil {
		t.Fatal(err)
	}
	if s.Used() != 8<<20 {
		t.Errorf("%d used: without a bound, what is discarded stays the guest's", s.Used())
	}
	fill(t, s, addr, 1<<20)
	flushes := b.flushes
	if u := s.Ask(6 << 20); u.Used != 5<<20 || u.Bound != 6<<20 {
		t.Errorf("%+v after 3 MiB of 8 were not used again", u)
	}
	if b.flushes == flushes {
		t.Error("translations were taken away without the CPU's knowledge")
	}
	var got [1]byte
	for _, off := range []uint64{0, 1<<20 - page, 1 << 20, 4<<20 - page, 4 << 20, 8<<20 - page} {
		want := byte(off>>12) | 1
		if off >= 1<<20 && off < 4<<20 {
			want = 0
		}
		if err := s.CopyIn(addr+off, got[:]); err != nil || got[0] != want {
			t.Errorf("at +%#x: %d, %v; expected %d", off, got[0], err, want)
		}
	}
	if !s.Enforce() {
		t.Error("beyond its bound")
	}
	failed := error(nil)
	if _, err := s.MapAnon(0x1000_0000, 4<<20, ProtRead|ProtWrite, Replace); err != nil {
		t.Fatal(err)
	}
	for off := uint64(0); failed == nil && off < 4<<20; off += page {
		failed = s.Fault(0x1000_0000+off, Write)
	}
	if !errors.Is(failed, ErrNoMemory) || s.Used() > 6<<20 {
		t.Errorf("%v with %d used of a bound of 6 MiB", failed, s.Used())
	}
}

// TestRepossessOrder checks what is taken first, and what never.
func TestRepossessOrder(t *testing.T) {
	s, _ := newSpace(t, 32<<20)
	at := func(addr, n uint64) uint64 {
		t.Helper()
		if _, err := s.MapAnon(addr, n, ProtRead|ProtWrite, Replace); err != nil {
			t.Fatal(err)
		}
		fill(t, s, addr, n)
		return addr
	}
	program := at(0x40_0000, 4<<20)
	s.Seal()
	s.SetBreak(0x200_0000)
	s.Break(0x200_0000 + 3<<20)
	fill(t, s, 0x200_0000, 3<<20)
	small, big, cold := at(0x1000_0000, 1<<20), at(0x2000_0000, 4<<20), at(0x3000_0000, 2<<20)
	if err := s.Expendable(cold, 2<<20, true); err != nil {
		t.Fatal(err)
	}
	sp := big + 1<<20
	spare := []Piece{{sp - 4*page, 8 * page}}
	take := func(n uint64) uint64 { t.Helper(); return s.Repossess(s.Used()-min(n, s.Used()), spare) }
	taken := func(addr uint64) bool { return errors.Is(s.Fault(addr, Read), ErrTaken) }

	s.Ask(0)
	if n := take(1 << 20); n != 1<<20 || !taken(cold) || taken(cold+1<<20) || taken(big) || taken(small) {
		t.Errorf("first 1 MiB of what is expendable: took %d", n)
	}
	if n := take(2 << 20); n != 2<<20 || !taken(cold+2<<20-page) || !taken(big) || taken(big+1<<20) || taken(small) {
		t.Errorf("then the largest: took %d", n)
	}
	if n := take(32 << 20); n != 4<<20-8*page {
		t.Errorf("took %d of what can be taken", n)
	}
	for _, addr := range []uint64{program, program + 4<<20 - page, 0x200_0000, 0x200_0000 + 3<<20 - page, sp - 4*page, sp, sp + 3*page} {
		if taken(addr) {
			t.Errorf("%#x was taken", addr)
		}
	}
	if list, all := s.Taken(2); all != 4 || len(list) != 2 || list[0] != (Piece{small, 1 << 20}) {
		t.Errorf("%v of %d", list, all)
	}
	if n := take(1 << 20); n != 0 || s.Enforce() {
		t.Errorf("took %d of nothing", n)
	}
	if _, err := s.Remap(small, 1<<20, 2<<20, true); err != unix.EFAULT {
		t.Errorf("moved what was taken: %v", err)
	}
	if err := s.CopyIn(small, make([]byte, 1)); !errors.Is(err, ErrFault) {
		t.Errorf("the host reads what was taken: %v", err)
	}
	s.Ask(s.Size())
	s.Enforce()
	if err := s.Unmap(big, 4<<20); err != nil {
		t.Fatal(err)
	}
	at(small, 1<<20)
	if list, all := s.Taken(10); all != 1 || list[0] != (Piece{cold, 2 << 20}) {
		t.Errorf("%v are still taken", list)
	}
}

func TestWithout(t *testing.T) {
	for _, c := range []struct {
		spare, want []Piece
	}{
		{nil, []Piece{{10, 10}}},
		{[]Piece{{0, 10}, {20, 5}}, []Piece{{10, 10}}},
		{[]Piece{{0, 30}}, nil},
		{[]Piece{{12, 3}}, []Piece{{10, 2}, {15, 5}}},
		{[]Piece{{12, 3}, {14, 10}}, []Piece{{10, 2}}},
		{[]Piece{{18, 1 << 60}, {0, 11}}, []Piece{{11, 7}}},
	} {
		got := without(Piece{10, 10}, c.spare)
		if len(got) != len(c.want) {
			t.Errorf("without %v: %v, expected %v", c.spare, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("without %v: %v, expected %v", c.spare, got, c.want)
			}
		}
	}
}

// TestPinnedMemoryIsTakenLater takes memory that host code still writes to.
func TestPinnedMemoryIsTakenLater(t *testing.T) {
	s, _ := newSpace(t, 16<<20)
	addr, err := s.MapAnon(0, 4<<20, ProtRead|ProtWrite, Hint)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, addr, 4<<20)
	segs, release, err := s.Segments(addr, 8*page, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Ask(1 << 20)
	if n := s.Repossess(0, nil); n != 4<<20 || s.Used() != 4<<20 {
		t.Errorf("took %d, %d used while the host writes there", n, s.Used())
	}
	for _, b := range segs {
		for i := range b {
			b[i] = 0xee
		}
	}
	release()
	if s.Used() != 0 {
		t.Errorf("%d used after the host's work was over", s.Used())
	}
	next, err := s.MapAnon(0, 1<<20, ProtRead|ProtWrite, Hint)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<20)
	if err := s.CopyIn(next, b); err != nil || !bytes.Equal(b, make([]byte, len(b))) {
		t.Error("new memory is not zero", err)
	}
}
