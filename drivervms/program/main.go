package program

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
)

// Host is what a driver has of its host.
type Host struct {
	Name    string // of the program, in front of what it prints
	Caps    []abi.Cap
	Channel *guest.Channel
	Status  *guest.Status
	Fail    bool   // it is to stand in for the driver; see abi.ArgFail
	State   []byte // what the driver's instances pass on, see hv/state; nil: nothing. Not to be touched before the host gives it a client

	requests, bytes uint64 // as last written to the status page

	lie   lie // told at the end of each round; nil: none
	lieTo map[uint64]*Mapping
}

// Main is the main function of a driver: run makes the driver, tells the host that it is ready, and serves for ever.
func Main(name string, run func(*Host) error) {
	// The data path does not allocate. What attachments leave behind is collected when some have ended, by the one goroutine that
	// there is: a collector that starts by itself would have to wait for it while it waits for work outside of the
	// scheduler's sight.
	debug.SetGCPercent(-1)
	debug.SetPanicOnFault(true)
	defer LastWords()
	h, err := openHost(name)
	if err == nil {
		err = run(h)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// LastWords, deferred, ends a panicking program as the Go runtime does, but writes its stack at once: the runtime writes it word by
// word, and each of these 500 writes would be an exit from the VM, while the clients wait for the next instance.
func LastWords() {
	if v := recover(); v != nil {
		fmt.Fprintf(os.Stderr, "panic: %v\n\n%s", v, debug.Stack())
		os.Exit(2)
	}
}

func openHost(name string) (h *Host, err error) {
	h = &Host{Name: name, Fail: len(os.Args) > 1 && os.Args[1] == abi.ArgFail}
	if h.Caps, err = guest.Caps(); err != nil {
		return nil, err
	}
	if h.Channel, err = guest.OpenChannel(); err != nil {
		return nil, err
	}
	if h.Status, err = guest.OpenStatus(); err != nil {
		return nil, err
	}
	return h, h.mapState()
}

// Say prints one line on the driver's console.
func (h *Host) Say(format string, a ...any) {
	fmt.Printf("%s: %s\n", h.Name, fmt.Sprintf(format, a...))
}
