package hv

import (
	"os"

	"golang.org/x/sys/unix"
)

// KeptFile takes fd over, as a file that its owner keeps, hands on and closes, and does nothing else with. The number changes; fd stays non-blocking if it
// was, so that Read and Write do not wait.
//
// os.NewFile would put a non-blocking descriptor into the Go runtime's poller, for both directions. Each ring of a doorbell that is only kept, and each frame
// on a kept socket, would then wake the keeper, which stands beside the data path and not in it.
func KeptFile(fd int, name string) *os.File {
	place, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // anything that blocks: the poller does not get it
	if err != nil {
		return os.NewFile(uintptr(fd), name) // works, and wakes
	}
	f := os.NewFile(uintptr(place), name)
	if err := unix.Dup3(fd, place, unix.O_CLOEXEC); err != nil {
		f.Close()
		return os.NewFile(uintptr(fd), name)
	}
	unix.Close(fd)
	return f
}
