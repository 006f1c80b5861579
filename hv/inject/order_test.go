package inject

import (
	"encoding/json"
	"math"
	"testing"
)

func good() []Order {
	nr := uint64(7)
	return []Order{
		{Fault: Exception, How: "ud"},
		{Fault: Flip, How: Code, Bits: 1},
		{Fault: Flip, How: Registers, Bits: MaxBits},
		{Fault: Call, How: Fail, Times: 1},
		{Fault: Call, How: Fail, Times: MaxTimes, Errno: 4095, Chance: 1, Call: &nr},
		{Fault: Call, How: Delay, Times: 1, DelayMs: MaxDelayMs},
		{Fault: Call, How: Hang, Times: 1},
		{Fault: IO, How: Error, Times: 1, Errno: 5, Op: OpFlush},
		{Fault: IO, How: Short, Times: 1},
		{Fault: IO, How: Slow, Times: 1, DelayMs: 1},
		{Fault: Bell, How: Lost, Times: 1, Op: OpKick},
		{Fault: Memory, How: Take, Leave: math.MaxUint64},
		{Fault: Clock, How: Both, JumpMs: -MaxJumpMs},
	}
}

func TestCheck(t *testing.T) {
	for _, o := range good() {
		if err := o.Check(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, o := range []Order{
		{},
		{Fault: "nonsense", How: Code},
		{Fault: Flip, How: "", Bits: 1},
		{Fault: Flip, How: Fail, Bits: 1},
		{Fault: Flip, How: Code},
		{Fault: Flip, How: Code, Bits: MaxBits + 1},
		{Fault: Flip, How: Code, Bits: -1},
		{Fault: Call, How: Fail},
		{Fault: Call, How: Fail, Times: MaxTimes + 1},
		{Fault: Call, How: Fail, Times: 1, Errno: 4096},
		{Fault: Call, How: Fail, Times: 1, Errno: -1},
		{Fault: Call, How: Fail, Times: 1, Chance: -0.1},
		{Fault: Call, How: Fail, Times: 1, Chance: 1.1},
		{Fault: Call, How: Fail, Times: 1, Chance: math.NaN()},
		{Fault: Call, How: Delay, Times: 1},
		{Fault: Call, How: Delay, Times: 1, DelayMs: MaxDelayMs + 1},
		{Fault: IO, How: Error, Times: 1},
		{Fault: IO, How: Error, Times: 1, Errno: 5, Op: OpKick},
		{Fault: IO, How: Slow, Times: 1, DelayMs: -1},
		{Fault: Bell, How: Lost, Times: 1, Op: OpRead},
		{Fault: Clock, How: Both},
		{Fault: Clock, How: Both, JumpMs: MaxJumpMs + 1},
		{Fault: Clock, How: Both, JumpMs: math.MinInt64},
	} {
		if o.Check() == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

// FuzzOrder arms whatever passes Check, and asks it for fates: nothing panics, and nothing strikes more often than it was told to.
func FuzzOrder(f *testing.F) {
	for _, o := range good() {
		b, err := json.Marshal(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint64(1), uint64(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, nr, a1 uint64) {
		var o Order
		if json.Unmarshal(b, &o) != nil || o.Check() != nil || !o.Armed() {
			return
		}
		var s Set
		if hit := s.Arm(&o); hit.What == "" {
			t.Error("armed without a word")
		}
		struck := uint64(0)
		for range 100 {
			a := s.Calls.Load()
			if a == nil {
				if a = s.IO.Load(); a == nil {
					a = s.Bells.Load()
				}
			}
			if a == nil {
				break
			}
			if a.Fault == Call {
				if fate := a.OfCall(nr, a1); fate != (Fate{}) {
					struck++
				}
			} else if a.Strike() {
				struck++
			}
		}
		if struck > o.Times {
			t.Errorf("struck %d times of %d", struck, o.Times)
		}
	})
}
