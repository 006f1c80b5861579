package mm

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resident returns how much of mem the host has memory for (mincore(2)).
func resident(t *testing.T, mem []byte) (n uint64) {
	t.Helper()
	vec := make([]byte, len(mem)/page)
	// Safe: mem is a whole mapping, and vec has a byte for each of its pages.
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
		t.Fatal("mincore:", errno)
	}
	for _, v := range vec {
		n += uint64(v&1) * page
	}
	return n
}
