//go:build linux && amd64

package process

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// notification is struct seccomp_notif with its struct seccomp_data (linux/seccomp.h).
type notification struct {
	ID    uint64
	PID   uint32
	Flags uint32
	Nr    int32
	Arch  uint32
	IP    uint64
	Args  [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

// addFD is struct seccomp_notif_addfd.
type addFD struct {
	ID                              uint64
	Flags, SrcFD, NewFD, NewFDFlags uint32
}

// ioctl requests on the listener.
const (
	notifRecv     = 0xc0502100
	notifSend     = 0xc0182101
	notifIDValid  = 0x40082102
	notifAddFD    = 0x40182103
	notifSetFlags = 0x40082104
)

// ioctl is safe for the pointer types used below: fixed-size structs without pointers in them.
func ioctl[T notification | response | addFD | uint64](fd int, req uintptr, arg *T) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// ioctlValue passes value itself.
func ioctlValue(fd int, req, value uintptr) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, value)
	if errno != 0 {
		return errno
	}
	return nil
}

// notifSizesMatch reports whether the kernel's structs have our sizes; they are allowed to grow.
func notifSizesMatch() (bool, error) {
	var sizes struct{ notif, resp, data uint16 }
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_NOTIF_SIZES, 0, uintptr(unsafe.Pointer(&sizes)))
	if errno != 0 {
		return false, errno
	}
	return uintptr(sizes.notif) == unsafe.Sizeof(notification{}) && uintptr(sizes.resp) == unsafe.Sizeof(response{}), nil
}
