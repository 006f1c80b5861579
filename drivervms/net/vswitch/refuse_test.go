package vswitch

import (
	"testing"

	"github.com/grailos/grail/ring"
)

// A switch that stands in gives back what it is sent, and nobody gets it; nor does it answer anything.
func TestRefuse(t *testing.T) {
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
	s := &bed{t: t, time: 1e9}
	s.Switch = New(Config{Refuse: true, Clock: func() int64 { return s.time }, Poll: ring.PollerConfig{MaxSpin: -1}})
	s.attach(a)
	s.attach(b)
	const frames = 5
	for range frames {
		a.send(between(a, b, "hello"))
	}
	s.run()
	if a.reapTx(0); a.tx[0].Outstanding() != 0 {
		t.Error("the sender's buffers were not given back")
	}
	if len(a.recv()) != 0 || len(b.recv()) != 0 || s.drops(a, DropDown) != frames {
		t.Errorf("%d frames dropped", s.drops(a, DropDown))
	}
}
