package program

import (
	"sync"
	"time"
)

// Misbehave makes the program fail, on request, to show that nobody else is harmed. It does not return. What takes time
// calls beat, which writes the heartbeat.
func Misbehave(how string, beat func()) {
	switch how {
	case "fault":
		poke()
	case "deadlock":
		deadlock()
	case "memory":
		exhaust(beat)
	}
	for {
	}
}

// deadlock has two goroutines take two locks in different order. A timer goes on meanwhile: where nothing at all can run any more the
// Go runtime sees that and ends the program, which would be another fault.
func deadlock() {
	var tick func()
	tick = func() { time.AfterFunc(time.Second, tick) }
	tick()
	var a, b sync.Mutex
	a.Lock()
	taken := make(chan struct{})
	go func() {
		b.Lock()
		close(taken)
		a.Lock()
	}()
	<-taken
	b.Lock()
}

// exhausted keeps what exhaust took.
var exhausted [][]byte

// exhaust takes memory, and touches it, until there is none, and beats meanwhile.
func exhaust(beat func()) {
	const piece, page = 1 << 20, 4096
	for {
		beat()
		b := make([]byte, piece)
		for i := 0; i < len(b); i += page {
			b[i] = 1
		}
		exhausted = append(exhausted, b)
	}
}
