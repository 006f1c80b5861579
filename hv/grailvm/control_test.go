package main

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
)

func TestTranslate(t *testing.T) {
	a := &hv.Attachment{ID: 3, Client: "c", Disk: "d", Features: 7, Log: 3, LogSize: 4096,
		Regions: []hv.AttachMem{{FD: 0, Base: 1 << 32, Size: 1 << 20, Offset: 4096}},
		Queues:  []hv.AttachRing{{Index: 1, Size: 128, Kick: 1, Call: 2, Desc: 1 << 32}, {Index: 2, Size: 8, Kick: -1, Call: -1}}}
	specs, msg, err := translate(a, []int{10, 11, 12, 13})
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		kind abi.CapKind
		fd   int
		size uint64
	}{{abi.CapGrant, 10, 1<<20 + 4096}, {abi.CapKick, 11, 0}, {abi.CapCall, 12, 0}, {abi.CapLog, 13, 4096}}
	if len(specs) != len(want) {
		t.Fatalf("%d capabilities", len(specs))
	}
	for i, w := range want {
		if s := specs[i]; s.Kind != w.kind || s.FD != w.fd || s.Size != w.size {
			t.Errorf("capability %d: %+v", i, s)
		}
	}
	if q := msg.Queues[1]; q.KickFD != -1 || q.CallFD != -1 || q.Index != 2 {
		t.Errorf("a queue without doorbells: %+v", q)
	}
	if msg.Regions[0].FD != 0 || msg.LogFD != 3 || msg.Queues[0].KickFD != 1 {
		t.Errorf("%+v", msg)
	}
}

func TestTranslateHostile(t *testing.T) {
	for name, a := range map[string]*hv.Attachment{
		"a descriptor that did not come": {Log: -1, Regions: []hv.AttachMem{{FD: 1, Size: 4096}}},
		"a doorbell that did not come":   {Log: -1, Queues: []hv.AttachRing{{Kick: 9, Call: -1}}},
		"a log that did not come":        {Log: 5},
		"an enormous region":             {Log: -1, Regions: []hv.AttachMem{{FD: 0, Size: 1<<64 - 1}}},
		"an enormous offset":             {Log: -1, Regions: []hv.AttachMem{{FD: 0, Size: 1, Offset: 1<<64 - 1}}},
	} {
		if _, _, err := translate(a, []int{10}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// A graild that died while it waited for an attach is followed by one that asks for the same: it gets the first one's answer, which the driver gave once.
func TestAttachAgain(t *testing.T) {
	askRig(t, func(t *testing.T, v *vm) {
		v.clients = map[uint64]*client{}
		answers := make(chan error)
		attach := func(id uint64) {
			a := &hv.Attachment{ID: id, Client: "c", Disk: "d", Log: -1}
			go func() { answers <- v.attach(a, nil) }()
			synctest.Wait()
		}
		attach(5)
		attach(5)
		v.onMessage(abi.Message{Type: abi.MsgDone, ID: 5})
		if err := errors.Join(<-answers, <-answers); err != nil {
			t.Error(err)
		}
		attach(5) // it serves already
		if err := <-answers; err != nil {
			t.Error(err)
		}
		v.onMessage(abi.Message{Type: abi.MsgDead, ID: 5, Text: "index out of range"})
		attach(5)
		if err := <-answers; err == nil {
			t.Error("a client that broke the rules was attached again")
		}
		attach(6)
		attach(6)
		v.onMessage(abi.Message{Type: abi.MsgDone, ID: 6, Text: "no disk d"})
		if a, b := <-answers, <-answers; a == nil || b == nil {
			t.Errorf("%v, %v", a, b)
		}
		attach(6) // nothing is left of it
		v.onMessage(abi.Message{Type: abi.MsgDone, ID: 6})
		if err := <-answers; err != nil {
			t.Error(err)
		}
	})
}
