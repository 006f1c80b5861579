package inject

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// The same seed flips the same bits, another seed others, and as many as were asked for.
func TestFlipBits(t *testing.T) {
	run := func(seed uint64) (string, map[uint64]byte) {
		mem := map[uint64]byte{}
		hit := Hit{}
		o := Order{Seed: seed}
		err := FlipBits(o.Random(), 5, []Piece{{0x1000, 0x1000}, {0x5000, 1}, {0x8000, 0x3000}}, func(addr uint64, mask byte) (byte, error) {
			if addr < 0x1000 || addr >= 0x2000 && addr != 0x5000 && (addr < 0x8000 || addr >= 0xb000) {
				t.Errorf("byte %#x lies outside", addr)
			}
			old := mem[addr]
			mem[addr] ^= mask
			return old, nil
		}, Code, &hit)
		if err != nil || len(hit.Code) != 5 {
			t.Error(err, hit)
		}
		return hit.What, mem
	}
	one, mem := run(7)
	again, _ := run(7)
	other, _ := run(8)
	if one != again || one == other {
		t.Errorf("seed 7: %s\nseed 7: %s\nseed 8: %s", one, again, other)
	}
	n := 0
	for _, b := range mem {
		n += bits.OnesCount8(b)
	}
	if n != 5 {
		t.Errorf("%d bits are set: %s", n, one)
	}
	if err := FlipBits((&Order{}).Random(), 1, nil, nil, Data, &Hit{}); !errors.Is(err, errNothing) {
		t.Error(err)
	}
	bad := errors.New("bad")
	if err := FlipBits((&Order{}).Random(), 1, []Piece{{1, 1}}, func(uint64, byte) (byte, error) { return 0, bad }, Data, &Hit{}); !errors.Is(err, bad) {
		t.Error(err)
	}
}

func TestFlipRegisters(t *testing.T) {
	for seed := range uint64(1000) {
		rax, rip, flags := uint64(5), uint64(0x400000), uint64(0x202)
		o := Order{Seed: seed}
		what := FlipRegisters(o.Random(), 1, []Register{{"rax", &rax}, {"rip", &rip}, {"rflags", &flags}}, "thread 1")
		changed := bits.OnesCount64(rax^5) + bits.OnesCount64(rip^0x400000) + bits.OnesCount64(flags^0x202)
		if changed != 1 || rip>>addressBits != 0 || (flags^0x202)&^0xcd5 != 0 {
			t.Fatalf("seed %d: %s: rax %#x, rip %#x, rflags %#x", seed, what, rax, rip, flags)
		}
	}
}

func TestWithin(t *testing.T) {
	list := []Piece{{0x1000, 0x1000}, {0x4000, 0x1000}}
	for _, c := range []struct {
		start, size uint64
		want        []Piece
	}{
		{0x1800, 0x3000, []Piece{{0x1800, 0x800}, {0x4000, 0x800}}},
		{0x2000, 0x2000, nil},
		{0x1fff, 1, []Piece{{0x1fff, 1}}},
		{^uint64(0) - 10, 100, nil},
	} {
		if got := Within(list, c.start, c.size); !slices.Equal(got, c.want) {
			t.Errorf("[%#x, +%#x): %v, want %v", c.start, c.size, got, c.want)
		}
	}
}

// What is armed strikes as often as it was told to, decides alike for the same seed, and is gone then.
func TestArmed(t *testing.T) {
	run := func(seed uint64) (fates string) {
		var s Set
		o := Order{Fault: Call, How: Fail, Seed: seed, Times: 10, Chance: 0.3}
		if err := o.Check(); err != nil {
			t.Fatal(err)
		}
		s.Arm(&o)
		struck := 0
		for i := 0; s.Calls.Load() != nil; i++ {
			if f := s.Calls.Load().OfCall(unix.SYS_READ, 0); f.Errno != 0 {
				fates += fmt.Sprintf("%d:%v ", i, f.Errno)
				struck++
			}
			if i > 10_000 {
				t.Fatal("it never ends")
			}
		}
		if struck != 10 {
			t.Errorf("struck %d times", struck)
		}
		return fates
	}
	if one, again, other := run(1), run(1), run(2); one != again || one == other {
		t.Errorf("seed 1: %s\nseed 1: %s\nseed 2: %s", one, again, other)
	}
}

// A system call fails only where it can: a program that ends does end, and waking never fails.
func TestErrnos(t *testing.T) {
	const futexWait, futexWake = 128, 129
	a := &Armed{Order: Order{Fault: Call, How: Fail, Times: 1000}, random: (&Order{}).Random(), left: 1000}
	for _, nr := range []uint64{unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_RT_SIGRETURN, unix.SYS_GETTID, unix.SYS_SCHED_YIELD, unix.SYS_CLOSE, 1 << 40} {
		if f := a.OfCall(nr, 0); f.Errno != 0 {
			t.Errorf("system call %d failed with %v", nr, f.Errno)
		}
	}
	if f := a.OfCall(unix.SYS_FUTEX, futexWake); f.Errno != 0 {
		t.Error("futex wake failed with", f.Errno)
	}
	if f := a.OfCall(unix.SYS_FUTEX, futexWait); f.Errno == 0 {
		t.Error("futex wait did not fail")
	}
}
