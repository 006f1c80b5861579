package guest

import (
	"errors"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
)

// Reclaim is the host's order to keep at most Bytes of the VM's memory. What is used beyond that at the deadline is taken by force; see Taken.
type Reclaim struct {
	ID       uint64
	Bytes    uint64
	Used     uint64    // when the order was given; at most Bytes if there is nothing to give, as when the bound was raised
	Deadline time.Time // zero if there is nothing to give
}

// Excess returns how many bytes are to be given back.
func (r *Reclaim) Excess() uint64 { return r.Used - min(r.Used, r.Bytes) }

// OnReclaim has f called, on a goroutine of its own, with each order from now on, and with the last one if there was one already. Orders come one at a time; one that is overtaken by
// the next while f runs is left out. If f gave less than it was asked for, it is called again with what is missing, until it gives nothing more: then the rest may be taken at once. OnReclaim is
// called once in a program. Errors: unix.ENOSYS outside a Grail VM.
func OnReclaim(f func(Reclaim)) error {
	if _, err := sysReclaim(abi.ReclaimTaken, nil, 0, 0); err != nil {
		return err
	}
	go func() {
		known := uint64(0)
		for {
			var o abi.Order
			err := awaitOrder(&o, known)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return // somebody else waits for orders
			}
			known = o.ID
			give(f, reclaimOf(&o))
		}
	}()
	return nil
}

// give calls f until it has given what the order says, gives nothing more, or there is a later order.
func give(f func(Reclaim), r Reclaim) {
	for {
		f(r)
		left, err := reclaimDone(r.ID, false)
		if err != nil || left == 0 {
			return
		}
		if left >= r.Excess() {
			_, _ = reclaimDone(r.ID, true)
			return
		}
		r.Used = r.Bytes + left
	}
}

// reclaimOf turns an order into its form for programs.
func reclaimOf(o *abi.Order) Reclaim {
	r := Reclaim{ID: o.ID, Bytes: o.Bytes, Used: o.Used}
	if o.Deadline != 0 {
		var ts unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) == nil {
			r.Deadline = time.Now().Add(time.Duration(int64(o.Deadline) - ts.Nano()))
		}
	}
	return r
}

// heapPart is the part of the bound that ReclaimHeap leaves to Go's runtime; the rest is for the program itself, its stacks, and pages that are used in part.
const heapPart = 7.0 / 8

// ReclaimHeap is for OnReclaim: it has Go's runtime keep below the bound from now on, and give back what it does not need. A program drops its caches first.
func ReclaimHeap(r Reclaim) {
	debug.SetMemoryLimit(int64(float64(min(r.Bytes, 1<<60)) * heapPart))
	if r.Excess() > 0 {
		debug.FreeOSMemory()
	}
}

// Taken returns what was taken from the program by force and has nothing else mapped over it, lowest address first. An access to it is a SIGBUS: where
// debug.SetPanicOnFault is set, a panic. Mapping something there, or unmapping it, takes it off the list. Errors: unix.ENOSYS outside a Grail VM.
func Taken() ([]abi.Range, error) {
	list := make([]abi.Range, 16)
	for {
		all, err := sysReclaim(abi.ReclaimTaken, list, 0, 0)
		if err != nil {
			return nil, err
		}
		if all <= len(list) || len(list) == abi.MaxTaken {
			return list[:min(all, len(list))], nil
		}
		list = make([]abi.Range, min(all+16, abi.MaxTaken))
	}
}

// Expendable says that the program can do without b, which is mapped memory of its own, better than without the rest: of what has to be taken by force, it goes first. Errors: those of
// madvise(2).
func Expendable(b []byte) error { return unix.Madvise(b, unix.MADV_COLD) }
