package ring_test

import (
	"errors"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/grailos/grail/ring"
)

func TestMemorySlice(t *testing.T) {
	low, high, top := make([]byte, 0x1000), make([]byte, 0x800), make([]byte, 16)
	m, err := ring.NewMemory(
		ring.Region{Base: math.MaxUint64 - 15, Mem: top},
		ring.Region{Base: 0x1000, Mem: low},
		ring.Region{Base: 0x2000, Mem: high}, // adjoins low
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		addr   uint64
		length uint32
		at     *byte // nil: out of range
	}{
		{0x1000, 0x1000, &low[0]},
		{0x1fff, 1, &low[0xfff]},
		{0x1000, 0x1001, nil}, // leaves a region, although the next adjoins
		{0x1fff, 2, nil},
		{0x0fff, 1, nil},
		{0x0fff, 2, nil},
		{0, 0, nil},
		{0x2000, 0x800, &high[0]},
		{0x27ff, 1, &high[0x7ff]},
		{0x2800, 0, nil},
		{0x2800, 1, nil},
		{0x1000, math.MaxUint32, nil},
		{math.MaxUint64 - 15, 16, &top[0]},
		{math.MaxUint64, 1, &top[15]},
		{math.MaxUint64, 2, nil},
		{math.MaxUint64 - 15, math.MaxUint32, nil},
		{math.MaxUint64 - 16, 1, nil},
	} {
		b, err := m.Slice(c.addr, c.length)
		switch {
		case c.at == nil && !errors.Is(err, ring.ErrRange):
			t.Errorf("[%#x, +%#x): %d bytes, %v", c.addr, c.length, len(b), err)
		case c.at != nil && (err != nil || len(b) != int(c.length) || cap(b) != len(b) || &b[0] != c.at):
			t.Errorf("[%#x, +%#x): %d bytes of %d, %v", c.addr, c.length, len(b), cap(b), err)
		}
	}
	if b, err := m.Slice(0x1800, 0); err != nil || len(b) != 0 {
		t.Errorf("empty range inside: %d bytes, %v", len(b), err)
	}
	if n := testing.AllocsPerRun(100, func() { m.Slice(0x1800, 8); m.Slice(0, 8) }); n != 0 {
		t.Errorf("Slice allocates %v times", n)
	}
}

func TestNewMemoryRejects(t *testing.T) {
	b := make([]byte, 0x1000)
	for name, rs := range map[string][]ring.Region{
		"empty":     {{Base: 0x1000}},
		"wraps":     {{Base: math.MaxUint64 - 0xffe, Mem: b}},
		"same base": {{Base: 0x1000, Mem: b}, {Base: 0x1000, Mem: b[:1]}},
		"overlap":   {{Base: 0x1fff, Mem: b}, {Base: 0x1000, Mem: b}},
	} {
		if _, err := ring.NewMemory(rs...); !errors.Is(err, ring.ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if m, err := ring.NewMemory(); err != nil {
		t.Errorf("no region: %v", err)
	} else if _, err := m.Slice(0, 0); !errors.Is(err, ring.ErrRange) {
		t.Errorf("slice of nothing: %v", err)
	}
}

// TestMemorySliceDifferential compares Slice with arithmetic that cannot overflow.
func TestMemorySliceDifferential(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	backing := make([]byte, 1<<12)
	for range 200 {
		var rs []ring.Region
		next := rng.Uint64()
		if rng.IntN(2) == 0 {
			next = uint64(rng.IntN(1 << 13))
		}
		for range rng.IntN(6) {
			n := uint64(1 + rng.IntN(len(backing)))
			if next+n-1 < next {
				break
			}
			rs = append(rs, ring.Region{Base: next, Mem: backing[:n]})
			next += n + uint64(rng.IntN(3))*uint64(rng.IntN(1<<12))
		}
		rng.Shuffle(len(rs), func(i, j int) { rs[i], rs[j] = rs[j], rs[i] })
		m, err := ring.NewMemory(rs...)
		if err != nil {
			continue // the gap wrapped around
		}
		for range 200 {
			addr, length := rng.Uint64(), rng.Uint32()
			if len(rs) > 0 && rng.IntN(8) != 0 {
				addr = rs[rng.IntN(len(rs))].Base + uint64(rng.IntN(1<<12)) - 16
			}
			if rng.IntN(8) != 0 {
				length = uint32(rng.IntN(1 << 12))
			}
			want := false
			end := new(big.Int).Add(new(big.Int).SetUint64(addr), big.NewInt(int64(length)))
			for _, r := range rs {
				top := new(big.Int).Add(new(big.Int).SetUint64(r.Base), big.NewInt(int64(len(r.Mem))))
				atEnd := new(big.Int).SetUint64(addr).Cmp(top) >= 0
				want = want || addr >= r.Base && end.Cmp(top) <= 0 && !atEnd
			}
			if b, err := m.Slice(addr, length); (err == nil) != want || err == nil && len(b) != int(length) {
				t.Fatalf("[%#x, +%#x) in %d regions: %v, want in range: %v", addr, length, len(rs), err, want)
			}
		}
	}
}
