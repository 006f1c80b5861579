package mm

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
	"github.com/grailos/grail/vcpu/kvm"
)

// Bounds of the user address space: areas lie in [MinAddress, MaxAddress).
const (
	MinAddress = 0x10000
	MaxAddress = amd64.SystemBase - 1<<30
)

// Guest-physical layout, besides the host areas (see hostBase).
const (
	ramBase    = uint64(kvm.FirstGPA)
	tablesBase = 1 << 30
)

// Machine is the part of a kvm.Machine that an address space needs; see there.
type Machine interface {
	AddSlot(gpa kvm.GPA, mem []byte) (kvm.Slot, error)
	RemoveSlot(kvm.Slot) error
	Flush() error
	SetRoot(uint64)
	SystemPage(offset uint64) kvm.GPA
	SystemPages() int
}

// Space is a guest's address space. Its methods are safe for concurrent use.
type Space struct {
	machine Machine

	mu     sync.RWMutex
	ram    *ram
	frames *frames
	tables *amd64.Tables
	areas  areas
	hosts  map[*hostArea]struct{}
	brk    struct{ start, end uint64 }
	bound  uint64 // how much RAM the guest may keep; see Ask

	pinMu sync.Mutex
	pins  int      // host operations on guest memory in progress
	limbo []func() // what must wait for them
}

// New makes an address space of size bytes of RAM, a multiple of 2 MiB, and makes it that of all vCPUs of
// machine. Nothing but the system area is mapped.
func New(machine Machine, size uint64) (*Space, error) {
	if size > hostBase-ramBase {
		return nil, fmt.Errorf("mm: %d bytes of memory, at most %d are possible", size, uint64(hostBase-ramBase))
	}
	r, err := newRAM(ramBase, size)
	if err != nil {
		return nil, err
	}
	s := &Space{machine: machine, ram: r, hosts: make(map[*hostArea]struct{}), bound: size}
	if s.frames, err = newFrames(machine, tablesBase, size); err != nil {
		return nil, err
	}
	if s.tables, err = amd64.NewTables(s.frames); err != nil {
		return nil, err
	}
	if _, err := machine.AddSlot(kvm.GPA(ramBase), r.mem); err != nil {
		return nil, err
	}
	if err := s.mapSystem(); err != nil {
		return nil, err
	}
	machine.SetRoot(s.tables.Root())
	return s, nil
}

// mapSystem maps the machine's system area at amd64.SystemBase.
func (s *Space) mapSystem() error {
	for i := range s.machine.SystemPages() {
		off := uint64(i) * page
		perm := amd64.PermWrite // supervisor only: descriptor tables and exception stacks
		switch off {
		case amd64.StubOffset, amd64.VDSOOffset:
			perm = amd64.PermUser | amd64.PermExec
		case amd64.ClockOffset:
			perm = amd64.PermUser
		case amd64.ActionsOffset:
			perm = amd64.PermUser | amd64.PermWrite
		}
		if err := s.tables.Map(amd64.SystemBase+off, uint64(s.machine.SystemPage(off)), perm); err != nil {
			return err
		}
	}
	return nil
}

// Used returns how much RAM has been handed out, in bytes.
func (s *Space) Used() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ram.used
}

// Size returns the guest's RAM in bytes.
func (s *Space) Size() uint64 { return uint64(len(s.ram.mem)) }

func (p Prot) perm() amd64.Perm {
	var perm amd64.Perm
	if p != 0 {
		perm = amd64.PermUser
	}
	if p&ProtWrite != 0 {
		perm |= amd64.PermWrite
	}
	if p&ProtExec != 0 {
		perm |= amd64.PermExec
	}
	return perm
}

// later runs f at once, or when the last host operation on guest memory is over.
func (s *Space) later(f func()) {
	s.pinMu.Lock()
	if s.pins > 0 {
		s.limbo = append(s.limbo, f)
		s.pinMu.Unlock()
		return
	}
	s.pinMu.Unlock()
	f()
}

// pin keeps memory that host code works on from being reused until unpin.
func (s *Space) pin() {
	s.pinMu.Lock()
	s.pins++
	s.pinMu.Unlock()
}

func (s *Space) unpin() {
	s.pinMu.Lock()
	s.pins--
	var due []func()
	if s.pins == 0 {
		due, s.limbo = s.limbo, nil
	}
	s.pinMu.Unlock()
	for _, f := range due {
		f()
	}
}

// frames gives out page-table frames from a region of their own, in order; none is ever taken back.
type frames struct {
	machine Machine
	base    uint64
	mem     []byte
	next    uint64
}

// newFrames sizes the region for the guest's RAM mapped in small pages at addresses of its choice.
func newFrames(machine Machine, base, ram uint64) (*frames, error) {
	size := min((ram/64+(8<<20))&^(page-1), 512<<20)
	mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mm: page tables: %w", err)
	}
	if _, err := machine.AddSlot(kvm.GPA(base), mem); err != nil {
		return nil, err
	}
	return &frames{machine: machine, base: base, mem: mem}, nil
}

// Alloc implements amd64.Frames.
func (f *frames) Alloc() (uint64, error) {
	if f.next == uint64(len(f.mem)) {
		return 0, amd64.ErrNoTable
	}
	pa := f.base + f.next
	f.next += page
	return pa, nil
}

// Table implements amd64.Frames.
func (f *frames) Table(pa uint64) *amd64.Table { return amd64.TableAt(f.mem[pa-f.base:]) }

// Flush implements amd64.Frames.
func (f *frames) Flush() {
	if err := f.machine.Flush(); err != nil {
		panic(fmt.Sprintf("mm: flush: %v", err))
	}
}
