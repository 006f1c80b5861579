package main

import (
	"syscall"
	"time"
	"unsafe"
)

// periods does the same work in every period, on the program's first thread, and notes how much of it was done in time.
func periods(c *config) Result {
	var r Result
	x := uint64(1)
	begin := time.Now()
	for k := 0; !c.over(); k++ {
		start := begin.Add(time.Duration(k) * c.period)
		for time.Now().Before(start) {
			nap(time.Until(start))
		}
		r.Late = append(r.Late, int(time.Since(start).Microseconds()))
		end := start.Add(c.period)
		var done time.Duration
		for from := threadTime(); done < c.work && time.Now().Before(end); done = threadTime() - from {
			for range stepsBetween {
				x = step(x)
			}
		}
		r.Periods = append(r.Periods, int(min(done, c.work).Microseconds()))
		r.Work++
	}
	sink.Add(x)
	return r
}

// nap sleeps, unless a signal ends it, in a system call of this very thread. The runtime's own sleep ends on whatever thread watches its timers, which has no budget.
func nap(d time.Duration) {
	if d > 0 {
		ts := syscall.NsecToTimespec(d.Nanoseconds())
		_, _, _ = syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
	}
}

// threadTime returns the processor time that this thread has used: in a VM, its vCPU's, with what the VMM does for it.
func threadTime() time.Duration {
	var ts syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPU, uintptr(unsafe.Pointer(&ts)), 0)
	return time.Duration(ts.Nano())
}

const clockThreadCPU = 3 // CLOCK_THREAD_CPUTIME_ID

// stepsBetween is how many steps are made between two looks at the clock, which cost an exit.
const stepsBetween = 20
