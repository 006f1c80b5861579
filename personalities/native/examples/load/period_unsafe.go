package main

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

// periods does the same work in every period, on the program's first thread, and notes how much of it was done in time. From the first period to the
// last it calls nothing that may have the runtime give the thread's work to another: that one has no budget, and is waited for beside whoever is busy.
// For that it needs GODEBUG=asyncpreemptoff=1 as well.
func periods(c *config) Result {
	runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))) // one for who hears of the end
	var r Result
	most := int(time.Until(c.until)/c.period) + 1
	late, done := make([]int, most), make([]int, most)
	x := uint64(1)
	begin := now(clockMonotonic)
	k := 0
	for ; k < most && !c.stopped.Load(); k++ {
		start := begin + int64(k)*int64(c.period)
		at := now(clockMonotonic)
		for ; at < start; at = now(clockMonotonic) {
			nap(start - at)
		}
		late[k] = int((at - start) / 1000)
		end := start + int64(c.period)
		var did int64
		for from := now(clockThreadCPU); did < int64(c.work) && now(clockMonotonic) < end; did = now(clockThreadCPU) - from {
			for range stepsBetween {
				x = step(x)
			}
		}
		done[k] = int(min(did, int64(c.work)) / 1000)
	}
	sink.Add(x)
	r.Late, r.Periods, r.Work = late[:k], done[:k], uint64(k)
	return r
}

// nap sleeps for some ns, unless a signal ends it, in a system call of this very thread.
//
//go:nosplit
func nap(ns int64) {
	ts := syscall.Timespec{Sec: ns / 1e9, Nsec: ns % 1e9}
	_, _, _ = syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// now reads a clock, in ns. That of this thread is the processor time that it has used: in a VM, its vCPU's, with what the VMM does for it.
//
//go:nosplit
func now(clock uintptr) int64 {
	var ts syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clock, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Sec*1e9 + ts.Nsec
}

// Clocks of clock_gettime(2).
const (
	clockMonotonic = 1
	clockThreadCPU = 3
)

// stepsBetween is how many steps are made between two looks at the clocks, each of which costs an exit.
const stepsBetween = 40
