package mm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/vcpu/kvm"
)

// hostArea is host memory that a guest can map: a grant of another VM or the program's file. It has a memory
// slot of its own for as long as anything maps it.
type hostArea struct {
	key  uint64 // the caller's name for it, to map it only once; 0: none
	mem  []byte
	gpa  uint64
	slot kvm.Slot
	refs int
	// private: what is written to mem is a copy, and nobody else's.
	private bool
}

// hostBase is where slots of host areas begin; RAM lies below.
const hostBase = 1 << 37

// place returns room for size bytes of guest-physical memory, aligned to 2 MiB. The caller holds s.mu.
func (s *Space) place(size uint64) (uint64, error) {
	gpa := uint64(hostBase)
	for { // few slots: a quadratic search is fine
		next := gpa
		for h := range s.hosts {
			if h.gpa < gpa+size && gpa < h.gpa+uint64(len(h.mem)) {
				next = max(next, (h.gpa+uint64(len(h.mem))+large-1)&^(large-1))
			}
		}
		if next == gpa {
			break
		}
		gpa = next
	}
	if gpa+size > uint64(kvm.LimitGPA) {
		return 0, fmt.Errorf("mm: no guest-physical room for %d bytes: %w", size, unix.ENOMEM)
	}
	return gpa, nil
}

// openHost returns the host area of key, made by mmapping fd if there is none yet. The caller holds s.mu.
func (s *Space) openHost(key uint64, fd int, off int64, size uint64, shared, write bool) (*hostArea, error) {
	if key != 0 {
		for h := range s.hosts {
			if h.key == key {
				return h, nil
			}
		}
	}
	prot, flags := unix.PROT_READ, unix.MAP_SHARED
	if write {
		prot |= unix.PROT_WRITE
	}
	if !shared {
		flags = unix.MAP_PRIVATE
	}
	// 2 MiB of slack aligns it as its guest-physical address is, without which no huge page can be used.
	mem, err := mapAligned(fd, off, size, prot, flags)
	if err != nil {
		return nil, fmt.Errorf("mm: map %d bytes: %w", size, err)
	}
	gpa, err := s.place(size)
	if err != nil {
		unmapHost(mem)
		return nil, err
	}
	h := &hostArea{key: key, mem: mem, gpa: gpa, private: !shared}
	if h.slot, err = s.machine.AddSlot(kvm.GPA(gpa), mem); err != nil {
		unmapHost(mem)
		return nil, err
	}
	s.hosts[h] = struct{}{}
	return h, nil
}

// dropHost gives back a host area that no area refers to any more. The caller holds s.mu.
func (s *Space) dropHost(h *hostArea) {
	delete(s.hosts, h)
	if err := s.machine.RemoveSlot(h.slot); err != nil {
		panic(fmt.Sprintf("mm: remove own slot: %v", err))
	}
	// Host code may still be moving data in or out of it.
	s.later(func() { unmapHost(h.mem) })
}

// Revoke replaces the memory of a host area, given by its key, by fresh zero pages, in the guest and for
// all host code that still works on it (the abort protocol). Key 0 names
// nothing. It reports whether there was one.
func (s *Space) Revoke(key uint64) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range s.hosts {
		if key != 0 && h.key == key {
			h.key = 0
			return true, replaceByZeroes(h.mem)
		}
	}
	return false, nil
}
