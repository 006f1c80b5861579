package hv

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"time"
)

// tunedProcs is how many threads of a tuned program may be between system calls at once.
const tunedProcs = 8

// monitorSlack is how much longer than it asks for the Go runtime's monitor may sleep. It looks every 20 µs, as long as any goroutine is at work or in
// a system call, for processors and goroutines to take from somebody: that was two thirds of what a VMM did whose guest asks for something 50 times a
// second. It acts on goroutines after 10 ms.
const monitorSlack = 4 * time.Millisecond

// TuneRuntime fits the Go runtime to a program whose threads come and go between the kernel, or a guest, and short pieces of work. It is called at the
// start of the program. Errors: the runtime's monitor must not be changed; all works without, at a higher price.
func TuneRuntime() error {
	// A thread that comes back needs one of the runtime's processors, and so does whatever it wakes. With as many as there are cores, it would wait for
	// threads that the host has put aside, or that are in system calls until the monitor looks after them.
	runtime.GOMAXPROCS(max(tunedProcs, runtime.GOMAXPROCS(0)))
	return restMonitor()
}

// restMonitor gives the monitor's thread ("sysmon") its timer slack (proc(5), /proc/pid/timerslack_ns). It is the second thread: the runtime makes it before
// anything else.
func restMonitor() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	if len(tasks) < 2 {
		return errors.New("the Go runtime has no monitor")
	}
	return os.WriteFile("/proc/"+tasks[1].Name()+"/timerslack_ns", strconv.AppendInt(nil, monitorSlack.Nanoseconds(), 10), 0)
}
