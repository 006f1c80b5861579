package ring

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringNow writes to an eventfd that does not block, without telling the scheduler: the call is over before
// another thread could have taken the processor's place.
func ringNow(fd int) unix.Errno {
	// Safe: the kernel reads the 8 bytes of a package variable.
	_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), uintptr(len(one)))
	return errno
}
