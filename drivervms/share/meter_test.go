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
	m.Settle(5 * time.Millisecond)
	want("nobody served yet", 0, 0, 0, 5e6)
	m.Spend(&a, 300)
	m.Spend(&b, 100)
	m.Spend(&b, 200)
	m.Settle(11 * time.Millisecond)
	want("half each", 3e6, 3e6, 0, 5e6)
	m.Settle(13 * time.Millisecond)
	want("idle", 4e6, 4e6, 0, 5e6)
	m.Spend(&c, 10)
	m.Settle(14 * time.Millisecond)
	want("another one", 4e6, 4e6, 1e6, 5e6)
	m.Settle(12 * time.Millisecond)
	want("a clock that goes back", 4e6, 4e6, 1e6, 5e6)
	m.Forget(&c)
	m.Settle(15 * time.Millisecond)
	want("the last one has left", 4e6, 4e6, 1e6, 6e6)
	m.Spend(&a, 1)
	m.Spend(&b, 2)
	m.Forget(&a)
	m.Forget(&a)
	m.Settle(18 * time.Millisecond)
	want("one has left", 4e6, 7e6, 1e6, 6e6)
	if sum() != 18*time.Millisecond {
		t.Errorf("%v were charged", sum())
	}
	m.Spend(&a, 1)
	m.Settle(19 * time.Millisecond)
	if n := testing.AllocsPerRun(10, func() { m.Spend(&a, 1); m.Spend(&b, 2); m.Settle(m.used + 7) }); n > 0 {
		t.Errorf("%.1f allocations", n)
	}
}
