package jail

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// install puts the filter on all threads at once (seccomp(2), SECCOMP_FILTER_FLAG_TSYNC). Unlike the library's loader it
// notices when a thread could not be synchronised, which the kernel reports as a positive number.
func install(prog []bpf.RawInstruction) error {
	filters := make([]unix.SockFilter, len(prog))
	for i, in := range prog {
		filters[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	// The kernel copies the program during the call.
	tid, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(filters)
	if e != 0 {
		return fmt.Errorf("jail: install the system-call filter (CONFIG_SECCOMP_FILTER is needed): %w", e)
	}
	if tid != 0 {
		return fmt.Errorf("jail: thread %d has a system-call filter of its own", tid)
	}
	return nil
}
