package ring

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Shared is memory that can be handed to a peer as a descriptor: a memfd, mapped here, sealed so that no
// holder of the descriptor can shrink it under a mapping. For the host; a guest is given its regions.
type Shared struct {
	Mem []byte
	fd  int
}

// NewShared creates size bytes of zeroed shared memory, size being rounded up to whole pages. The name shows in
// /proc only. The caller closes it.
func NewShared(name string, size uint64) (*Shared, error) {
	size = roundUp(size, uint64(unix.Getpagesize()))
	if size == 0 || size > 1<<46 {
		return nil, fmt.Errorf("%w: shared memory of %d bytes", ErrConfig, size)
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("ring: memfd: %w", err)
	}
	s := &Shared{fd: fd}
	if err = unix.Ftruncate(fd, int64(size)); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err == nil {
		s.Mem, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ring: shared memory of %d bytes: %w", size, err)
	}
	return s, nil
}

// FD returns the descriptor, which stays s's: duplicate it or send it, do not close it.
func (s *Shared) FD() int { return s.fd }

// Close unmaps the memory and closes the descriptor. Nothing made from Mem may be used afterwards.
func (s *Shared) Close() error {
	err := unix.Munmap(s.Mem)
	s.Mem = nil
	if e := unix.Close(s.fd); err == nil {
		err = e
	}
	return err
}
