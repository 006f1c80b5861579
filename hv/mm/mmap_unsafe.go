package mm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapAligned maps size bytes of fd from off on, at a host address that is 2 MiB-aligned when size is large.
func mapAligned(fd int, off int64, size uint64, prot, flags int) ([]byte, error) {
	slack := uint64(0)
	if size >= large {
		slack = large
	}
	all, err := unix.MmapPtr(-1, 0, nil, uintptr(size+slack), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	base := all
	if slack != 0 {
		base = unsafe.Add(all, int(-uintptr(all)&(large-1)))
	}
	// Safe: [base, base+size) lies within the reservation just made, which nobody else knows of.
	p, err := unix.MmapPtr(fd, off, base, uintptr(size), prot, flags|unix.MAP_FIXED)
	if err != nil {
		unix.MunmapPtr(all, uintptr(size+slack))
		return nil, err
	}
	if head := uintptr(base) - uintptr(all); head > 0 {
		unix.MunmapPtr(all, head)
	}
	if tail := uintptr(all) + uintptr(size+slack) - uintptr(base) - uintptr(size); tail > 0 {
		unix.MunmapPtr(unsafe.Add(base, size), tail)
	}
	return unsafe.Slice((*byte)(p), size), nil
}

// unmapHost undoes mapAligned.
func unmapHost(mem []byte) {
	// Safe: mem is a whole mapping made by mapAligned that nothing refers to any more.
	unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(len(mem)))
}

// replaceByZeroes maps fresh anonymous memory over mem. Translations that KVM derived from it are dropped.
func replaceByZeroes(mem []byte) error {
	// Safe: the range is a mapping of our own, and stays one.
	_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(&mem[0]), uintptr(len(mem)), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED)
	return err
}
