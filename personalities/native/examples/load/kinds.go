package main

import (
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// each runs f on every thread, each a thread of the kernel's, and returns the sum of what they return.
func (c *config) each(f func() uint64) uint64 {
	var sum atomic.Uint64
	var all sync.WaitGroup
	for range c.threads {
		all.Go(func() {
			runtime.LockOSThread()
			sum.Add(f())
		})
	}
	all.Wait()
	return sum.Load()
}

// over reports whether it is time to end.
func (c *config) over() bool { return c.stopped.Load() || !time.Now().Before(c.until) }

// step is a little arithmetic, some µs.
func step(x uint64) uint64 {
	for range 2000 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

var sink atomic.Uint64 // keeps the arithmetic from being left out

// arith computes.
func arith(c *config) Result {
	return Result{Work: c.each(func() (n uint64) {
		x := uint64(88172645463325252)
		for ; !c.over(); n++ {
			x = step(x)
		}
		sink.Add(x)
		return n
	})}
}

// syscalls makes system calls, and nothing else.
func syscalls(c *config) Result {
	return Result{Work: c.each(func() (n uint64) {
		for !c.over() {
			for range 16 {
				syscall.Getppid()
			}
			n += 16
		}
		return n
	})}
}

// Of a burst.
const (
	burstBusy  = 2 * time.Millisecond
	burstPause = time.Millisecond
)

// bursts computes for a moment and sleeps for a moment, on each thread at other times.
func bursts(c *config) Result {
	var begun atomic.Int64
	return Result{Work: c.each(func() (n uint64) {
		time.Sleep(time.Duration(begun.Add(1)) * burstPause / 3)
		x := uint64(1)
		for ; !c.over(); n++ {
			for end := time.Now().Add(burstBusy); time.Now().Before(end); {
				x = step(x)
			}
			time.Sleep(burstPause)
		}
		sink.Add(x)
		return n
	})}
}

// How long before a tick the dodger sleeps, and how long after it it wakes.
const (
	dodgeBefore = 100 * time.Microsecond
	dodgeAfter  = 50 * time.Microsecond
)

// dodge sleeps across each tick of the host's clock: where processor time is charged to whoever a tick finds running, it runs for nothing.
func dodge(c *config) Result {
	var slept atomic.Int64
	n := c.each(func() (n uint64) {
		x := uint64(1)
		for ; !c.over(); n++ {
			now := time.Duration(time.Now().UnixNano())
			next := (now/c.tick + 1) * c.tick
			if next-now > dodgeBefore {
				x = step(x)
				continue
			}
			begin := time.Now()
			time.Sleep(next - now + dodgeAfter)
			slept.Add(min(time.Since(begin), dodgeBefore+dodgeAfter).Nanoseconds())
		}
		sink.Add(x)
		return n
	})
	return Result{Work: n, Slept: slept.Load() / int64(c.threads)}
}

// fork starts threads for as long as it is let: each one is locked and sleeps in a call for ever.
func fork(c *config) Result {
	var r Result
	for !c.over() {
		go func() {
			runtime.LockOSThread()
			_ = syscall.Pause()
		}()
		r.Work++
		if r.Work%16 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	return r
}

func init() {
	// The kind period does its work on the first thread, which has a real-time budget if the VM has one.
	runtime.LockOSThread()
}
