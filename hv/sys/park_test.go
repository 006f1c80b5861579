package sys

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newParked returns a thread that exists only to park.
func newParked() *thread { return &thread{g: new(Guest), current: noCall} }

// A wake-up counts whatever came before it: who gives it has taken the thread off its queue.
func TestWakeAfterInterrupt(t *testing.T) {
	th := newParked()
	th.parked.arm()
	th.parked.interrupt() // the signal was delivered before: there is nothing to look at
	th.parked.wake()
	if err := th.park(time.Minute); err != nil {
		t.Errorf("woken: %v", err)
	}
	th.parked.arm()
	th.parked.interrupt()
	if err := th.park(time.Millisecond); err != unix.ETIMEDOUT {
		t.Errorf("interrupted for nothing: %v, expected a time-out", err)
	}
	th.parked.arm()
	th.pending = bit(int(unix.SIGUSR1))
	if err := th.park(time.Minute); err != unix.EINTR {
		t.Errorf("with a signal pending: %v", err)
	}
	th.parked.arm()
	th.parked.wake()
	if err := th.park(time.Minute); err != nil {
		t.Errorf("woken with a signal pending: %v", err)
	}
}

// Of an interruption and a wake-up at the same time, the wake-up is never lost.
func TestWakeAndInterruptTogether(t *testing.T) {
	th := newParked()
	for range 2000 {
		th.parked.arm()
		go th.parked.interrupt()
		go th.parked.wake()
		if err := th.park(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
}
