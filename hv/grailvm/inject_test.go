package main

import (
	"math"
	"testing"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/inject"
	"github.com/grailos/grail/hv/sys"
)

// noEngine is an engine on which no fault can be made.
type noEngine struct {
	engine
	asked int
}

func (e *noEngine) Inject(*inject.Order) (inject.Hit, error) {
	e.asked++
	return inject.Hit{}, inject.ErrUnsupported
}

// Orders that are out of bounds reach nothing; others are armed, or the engine's.
func TestInjectBounds(t *testing.T) {
	askRig(t, func(t *testing.T, v *vm) {
		e := &noEngine{engine: (*sys.Guest)(nil)}
		v.engine = e
		for _, o := range []*inject.Order{
			nil, {}, {Fault: "x", How: "y"},
			{Fault: inject.Flip, How: inject.Code, Bits: math.MaxInt}, {Fault: inject.Flip, How: inject.Code, Bits: -1},
			{Fault: inject.Call, How: inject.Fail, Times: math.MaxUint64}, {Fault: inject.Call, How: inject.Delay, Times: 1, DelayMs: math.MaxInt64},
			{Fault: inject.IO, How: inject.Slow, Times: 1, DelayMs: math.MinInt64}, {Fault: inject.IO, How: inject.Error, Times: 1, Errno: math.MaxInt32},
			{Fault: inject.Bell, How: inject.Lost}, {Fault: inject.Clock, How: inject.Both, JumpMs: math.MinInt64},
		} {
			resp, _, err := v.control(&hv.Request{Op: hv.OpInject, Order: o}, nil)
			if err == nil || e.asked != 0 {
				t.Errorf("%+v: %+v", o, resp.Hit)
			}
		}
		f := &v.table.Faults
		if f.Calls.Load() != nil || f.IO.Load() != nil || f.Bells.Load() != nil {
			t.Error("something is armed")
		}
		resp, _, err := v.control(&hv.Request{Op: hv.OpInject, Order: &inject.Order{Fault: inject.IO, How: inject.Short, Times: 1}}, nil)
		if err != nil || resp.Hit == nil || resp.Hit.What == "" || f.IO.Load() == nil {
			t.Errorf("%+v, %v", resp, err)
		}
		if _, _, err := v.control(&hv.Request{Op: hv.OpInject, Order: &inject.Order{Fault: inject.Exception, How: "ud"}}, nil); err == nil || e.asked != 1 {
			t.Errorf("%v, asked %d times", err, e.asked)
		}
	})
}
