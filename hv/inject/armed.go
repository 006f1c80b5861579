package inject

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Set is what is armed in one VM: at most one fault of each kind. The zero Set is empty.
type Set struct {
	Calls, IO, Bells atomic.Pointer[Armed]
}

// Armed is a fault that strikes at the next occasions. It is safe for concurrent use.
type Armed struct {
	Order
	slot *atomic.Pointer[Armed]

	mu     sync.Mutex
	random *rand.Rand
	left   uint64
}

// Arm arms a checked order of a kind that is armed, in place of what was armed of that kind.
func (s *Set) Arm(o *Order) Hit {
	a := &Armed{Order: *o, random: o.Random(), left: o.Times}
	switch o.Fault {
	case Call:
		a.slot = &s.Calls
	case IO:
		a.slot = &s.IO
	default:
		a.slot = &s.Bells
	}
	a.slot.Store(a)
	return Hit{What: a.String()}
}

// String says what is going to happen.
func (a *Armed) String() string {
	of := map[Fault]string{Call: "system call", IO: "device operation", Bell: "ring of a doorbell"}[a.Fault]
	s := "armed: the next " + of
	if a.Times > 1 {
		s = fmt.Sprintf("armed: each of the next %d times, a %s", a.Times, of)
	}
	switch {
	case a.Order.Call != nil:
		s += fmt.Sprintf(" with number %d", *a.Order.Call)
	case a.Op != "":
		s += " of kind " + a.Op
	}
	s += map[string]string{Fail: " fails", Delay: " is late", Hang: " never returns", Error: " fails", Short: " is cut short", Slow: " is late",
		Lost: " is lost", Double: " comes twice"}[a.How]
	if a.DelayMs > 0 {
		s += fmt.Sprintf(" by %d ms", a.DelayMs)
	}
	if a.Errno > 0 {
		s += " with " + unix.ErrnoName(unix.Errno(a.Errno))
	}
	if a.Chance > 0 && a.Chance < 1 {
		s += fmt.Sprintf(", with a chance of %v", a.Chance)
	}
	return s
}

// Strike reports whether the fault strikes at this occasion. After the last time the fault disarms itself.
func (a *Armed) Strike() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left == 0 || a.Chance > 0 && a.random.Float64() >= a.Chance {
		return false
	}
	if a.left--; a.left == 0 {
		a.slot.CompareAndSwap(a, nil)
	}
	return true
}

// Pick returns a random number in [0, n), for a strike.
func (a *Armed) Pick(n int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.random.IntN(n)
}

// Wait is how long a strike delays.
func (a *Armed) Wait() time.Duration { return time.Duration(a.DelayMs) * time.Millisecond }

// Fate is what becomes of a system call. The zero Fate is that it is served.
type Fate struct {
	Errno unix.Errno    // it fails
	Delay time.Duration // it is served after that
	Hang  bool          // it never returns
}

// OfCall decides about system call nr, of which a1 is the second argument.
func (a *Armed) OfCall(nr, a1 uint64) (f Fate) {
	if a.Order.Call != nil && *a.Order.Call != nr {
		return f
	}
	switch a.How {
	case Fail:
		list := Errnos(nr, a1)
		if a.Errno > 0 && (a.Order.Call != nil || len(list) > 0) {
			list = []unix.Errno{unix.Errno(a.Errno)}
		}
		if len(list) > 0 && a.Strike() {
			f.Errno = list[a.Pick(len(list))]
		}
	case Delay:
		if a.Strike() {
			f.Delay = a.Wait()
		}
	case Hang:
		// Where a program waits for something else than the host, such as in futex, it would be hard to notice.
		f.Hang = (a.Order.Call != nil || waitsForHost(nr)) && a.Strike()
	}
	return f
}
