package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
)

// question is a message of OpAsk that the driver has not answered yet.
type question struct {
	kind   abi.MessageType
	id     uint64
	answer chan abi.Message // holds one
}

var errSilent = errors.New("the driver did not answer in time")

// question passes m to the driver and returns its answer. One question is under way at a time. One that was not answered in
// time stays under way, so that a late answer is not taken for the next one's.
func (v *vm) question(m abi.Message) (*abi.Message, error) {
	if v.spec.Kind != hv.Driver {
		return nil, errNoDriver
	}
	timer := time.NewTimer(hv.AskTimeout)
	defer timer.Stop()
	select {
	case v.asking <- struct{}{}:
	case <-timer.C:
		return nil, errSilent
	}
	q := &question{kind: m.Type, id: m.ID, answer: make(chan abi.Message, 1)}
	v.mu.Lock()
	v.asked = q
	v.mu.Unlock()
	if err := v.table.Control().Push(m); err != nil {
		v.mu.Lock()
		if v.asked == q {
			v.asked = nil
			<-v.asking
		}
		v.mu.Unlock()
		return nil, err
	}
	select {
	case a := <-q.answer:
		// What the driver wrote was bounded, but JSON can be longer when it is written again.
		if b, err := json.Marshal(a); err != nil || len(b) > 2*abi.MaxMessage {
			return nil, fmt.Errorf("the driver's answer is too long: %d bytes", len(b))
		}
		return &a, nil
	case <-timer.C:
		return nil, errSilent
	}
}

// answered takes the driver's message if it answers the question that is under way. v.mu is held.
func (v *vm) answered(m abi.Message) {
	if q := v.asked; q != nil && q.kind == m.Type && q.id == m.ID {
		v.asked = nil
		q.answer <- m
		<-v.asking
	}
}
