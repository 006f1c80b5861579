package jail

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropPrivileges becomes nobody where the process is root and may, gives up every capability and the chance to
// gain any. The caller is locked to its thread until the filter is installed.
func dropPrivileges() error {
	if os.Geteuid() == 0 {
		if err := becomeNobody(); err != nil {
			return err
		}
	}
	var none [2]unix.CapUserData
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	// The kernel reads both during the call; KeepAlive holds them until every thread has made it.
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&none[0])), 0)
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&none)
	if e == syscall.ENOTSUP {
		return ErrCgo
	}
	if e != 0 {
		return fmt.Errorf("jail: drop capabilities: %w", e)
	}
	// Without permitted capabilities there are no ambient ones. No-new-privileges reaches the other threads with the
	// filter (seccomp(2), SECCOMP_FILTER_FLAG_TSYNC).
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("jail: set no-new-privileges: %w", err)
	}
	// Nobody else of the same user may look into the process.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("jail: forbid tracing: %w", err)
	}
	return nil
}

// becomeNobody changes user and group on all threads. In a user namespace without another user it changes nothing: root there
// is an ordinary user of the host.
func becomeNobody() error {
	if groups, err := syscall.Getgroups(); err != nil || len(groups) > 0 {
		if err := syscall.Setgroups(nil); err != nil && err != syscall.EPERM {
			return fmt.Errorf("jail: drop groups: %w", err)
		}
	}
	switch err := syscall.Setresgid(Nobody, Nobody, Nobody); err {
	case nil:
	case syscall.EINVAL: // not mapped
		return nil
	default:
		return fmt.Errorf("jail: become group %d: %w", Nobody, err)
	}
	if err := syscall.Setresuid(Nobody, Nobody, Nobody); err != nil {
		return fmt.Errorf("jail: become user %d: %w", Nobody, err)
	}
	return nil
}
