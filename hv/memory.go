package hv

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// NewMemory returns size bytes of zeroed shareable memory as a memfd whose size is sealed. A page costs
// nothing until it is touched. The caller owns the file.
func NewMemory(name string, size uint64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("hv: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		f.Close()
		return nil, fmt.Errorf("hv: size of memory %s: %w", name, err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("hv: seal memory %s: %w", name, err)
	}
	return f, nil
}

// ForReading returns a second descriptor of f's memory by which nobody can change it, or map it to be changed. The caller owns it.
func ForReading(f *os.File) (*os.File, error) { return reopen(f, os.O_RDONLY) }

// ForWriting undoes ForReading, for those who may look into /proc.
func ForWriting(f *os.File) (*os.File, error) { return reopen(f, os.O_RDWR) }

func reopen(f *os.File, flags int) (*os.File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("hv: memory: %w", err)
	}
	var out *os.File
	var oerr error
	err = conn.Control(func(fd uintptr) {
		var n int
		if n, oerr = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags|unix.O_CLOEXEC, 0); oerr == nil {
			out = os.NewFile(uintptr(n), f.Name())
		}
	})
	if err == nil {
		err = oerr
	}
	if err != nil {
		return nil, fmt.Errorf("hv: open memory %s once more: %w", f.Name(), err)
	}
	return out, nil
}

// NewSealed returns a memfd that holds content and can no longer be changed.
func NewSealed(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("hv: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(content, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("hv: fill %s: %w", name, err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("hv: seal %s: %w", name, err)
	}
	return f, nil
}

// NewDoorbell returns a non-blocking eventfd, as a KeptFile. The caller owns it.
func NewDoorbell() (*os.File, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("hv: eventfd: %w", err)
	}
	return KeptFile(fd, "doorbell"), nil
}
