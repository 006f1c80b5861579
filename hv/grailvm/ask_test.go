package main

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/vfs"
)

// askRig is a driver's vm without a guest, in a bubble of time.
func askRig(t *testing.T, test func(t *testing.T, v *vm)) {
	synctest.Test(t, func(t *testing.T) {
		v := &vm{spec: &hv.Spec{Kind: hv.Driver}, asking: make(chan struct{}, 1)}
		var err error
		v.table, err = vfs.New(vfs.Config{Stdin: -1, Stdout: -1, Stderr: -1, Log: [2]int{-1, -1}, Files: -1, Program: -1, OnMessage: v.onMessage})
		if err != nil {
			t.Fatal(err)
		}
		defer v.table.Close()
		test(t, v)
	})
}

// ask asks, lets the driver say says after each has waited, and returns what came of it and when.
func ask(v *vm, m abi.Message, says ...abi.Message) (a *abi.Message, took time.Duration, err error) {
	started := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		a, err = v.question(m)
	}()
	synctest.Wait()
	for _, s := range says {
		v.onMessage(s)
	}
	<-done
	return a, time.Since(started), err
}

func TestAsk(t *testing.T) {
	stats := abi.Message{Type: abi.MsgStats, ID: 3}
	answer := abi.Message{Type: abi.MsgStats, ID: 3, Text: `{"rx": 1}`}
	askRig(t, func(t *testing.T, v *vm) {
		// Other messages are no answers, and the answer need come but once.
		a, took, err := ask(v, stats, abi.Message{Type: abi.MsgNames, ID: 3}, abi.Message{Type: abi.MsgStats, ID: 4},
			abi.Message{Type: abi.MsgDone, ID: 3}, abi.Message{Type: abi.MsgReady}, answer, abi.Message{Type: abi.MsgStats, ID: 3, Text: "late"})
		if err != nil || a.Text != answer.Text || took != 0 {
			t.Fatalf("%+v, %v after %v", a, err, took)
		}
		// Silence ends after a while, once for each who asks, and a late answer is not taken for another question's.
		for range 3 {
			if _, took, err := ask(v, stats); err != errSilent || took != hv.AskTimeout {
				t.Fatalf("%v after %v", err, took)
			}
		}
		if _, _, err := ask(v, stats, abi.Message{Type: abi.MsgStats, ID: 3, Text: "late"}); err != errSilent {
			t.Fatal(err) // the late answer let it ask, and it was not its own
		}
		v.onMessage(answer)
		if a, took, err := ask(v, stats, answer); err != nil || a.Text != answer.Text || took != 0 {
			t.Fatalf("%+v, %v after %v", a, err, took)
		}
		// Who waits for his turn gets it.
		first := make(chan error)
		go func() {
			_, err := v.question(stats)
			first <- err
		}()
		synctest.Wait()
		second := make(chan *abi.Message)
		go func() {
			a, _ := v.question(abi.Message{Type: abi.MsgNames, ID: 9})
			second <- a
		}()
		synctest.Wait()
		v.onMessage(answer)
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		v.onMessage(abi.Message{Type: abi.MsgNames, ID: 9, Text: "no"})
		if a := <-second; a == nil || a.Text != "no" {
			t.Fatalf("%+v", a)
		}
	})
}

func TestAskHostile(t *testing.T) {
	q := abi.Message{Type: abi.MsgStats}
	askRig(t, func(t *testing.T, v *vm) {
		// What grows when it is written again does not end the connection.
		if _, _, err := ask(v, q, abi.Message{Type: abi.MsgStats, Text: strings.Repeat("<", 16000)}); err == nil || err == errSilent {
			t.Errorf("%v", err)
		}
		if _, _, err := ask(v, abi.Message{Type: abi.MsgNames, Text: strings.Repeat("x", abi.MaxMessage)}); err == nil || err == errSilent {
			t.Errorf("too long a question: %v", err)
		}
		if _, _, err := ask(v, q, q); err != nil {
			t.Errorf("after an error: %v", err)
		}
		// A driver that reads nothing.
		for {
			err := v.table.Control().Push(q)
			if errors.Is(err, vfs.ErrControlFull) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if _, took, err := ask(v, q); !errors.Is(err, vfs.ErrControlFull) || took != 0 {
				t.Errorf("%v after %v", err, took)
			}
		}
		v.onMessage(q) // an answer to nothing
		v.spec.Kind = hv.Personality
		if _, err := v.question(q); err != errNoDriver {
			t.Errorf("no driver: %v", err)
		}
	})
}
