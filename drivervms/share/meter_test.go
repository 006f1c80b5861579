package share

import (
	"testing"
	"time"
)

func TestMeter(t *testing.T) {
	var m Meter
	var a, b, c Account
	sum := func() time.Duration { return m.Own + a.CPU + b.CPU + c.CPU }
	want := func(what string, x, y, z, own time.Duration) {
		t.Helper()
		for _, k := range []struct{ got, want time.Duration }{{a.CPU, x}, {b.CPU, y}, {c.CPU, z}, {m.Own, own}} {
			if d := k.got - k.want; d < -2 || d > 2 {
				t.Fatalf("%s: charged %v, %v, %v, and %v to nobody; want %v, %v, %v, %v", what, a.CPU, b.CPU, c.CPU, m.Own, x, y, z, own)
			}
		}
	}
	spend := func(x, y int64) { // in one round, for a and b
		m.Note(&a, 7*x)
		m.Note(&b, 3*y)
		m.Note(&b, 4*y)
		if m.Noted() != 7*(x+y) || !m.Round(x+y) || m.Noted() != 0 {
			t.Fatal("the round was lost")
		}
	}
	if m.Round(99) {
		t.Error("an empty round had something in it")
	}
	m.Settle(5 * time.Millisecond)
	want("nobody served yet", 0, 0, 0, 5e6)
	spend(300, 100)
	m.Note(&b, 5)
	m.Round(200)
	m.Settle(11 * time.Millisecond)
	want("half each", 3e6, 3e6, 0, 5e6)
	m.Settle(13 * time.Millisecond)
	want("idle", 4e6, 4e6, 0, 5e6)
	m.Note(&c, 10)
	m.Round(10)
	m.Settle(14 * time.Millisecond)
	want("another one", 4e6, 4e6, 1e6, 5e6)
	m.Settle(12 * time.Millisecond)
	want("a clock that goes back", 4e6, 4e6, 1e6, 5e6)
	m.Forget(&c)
	m.Settle(15 * time.Millisecond)
	want("the last one has left", 4e6, 4e6, 1e6, 6e6)
	spend(1, 2)
	m.Note(&a, 1)
	m.Forget(&a)
	m.Forget(&a)
	if m.Noted() != 0 || m.Round(1) {
		t.Error("what is forgotten was noted still")
	}
	m.Settle(18 * time.Millisecond)
	want("one has left", 4e6, 7e6, 1e6, 6e6)
	if sum() != 18*time.Millisecond {
		t.Errorf("%v were charged", sum())
	}
	spend(1, 1)
	m.Settle(19 * time.Millisecond)
	if n := testing.AllocsPerRun(10, func() { spend(1, 2); m.Settle(m.used + 7) }); n > 0 {
		t.Errorf("%.1f allocations", n)
	}
}
