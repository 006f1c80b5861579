package kvm

import (
	"errors"
	"fmt"
	"sync"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
)

// GPA is a guest-physical address in bytes.
type GPA uint64

// The guest-physical address space. Callers place their slots from FirstGPA on.
const (
	systemGPA = 0
	scratch   = 32 << 20 // a page whose slot is deleted and made again to flush
	FirstGPA  = GPA(1 << 32)
	// LimitGPA is the end of what every CPU model in use can address.
	LimitGPA = GPA(1 << 39)
)

// MaxVCPUs bounds the vCPUs of one machine.
const MaxVCPUs = 1024

// apiVersion is the only version of the KVM API (api.rst §4.1 KVM_GET_API_VERSION).
const apiVersion = 12

// Machine is one virtual machine: memory slots and vCPUs. Its methods are safe for concurrent use.
type Machine struct {
	kvm, vm  uintptr
	runSize  int
	cpuid    []byte // struct kvm_cpuid2
	xcr0     uint64 // see chooseStates
	fpuSize  int
	system   []byte // the system area
	flushMem []byte
	maxVCPUs int
	entry    uint64 // where SYSCALL leads
	root     uint64 // guest-physical address of the top page table

	mu    sync.Mutex
	slots []bool // in use, by slot number; 0 is the system area, 1 the scratch page
	idle  []*VCPU
	made  int
}

// Open makes a machine on kvmFD, an open /dev/kvm, which it does not take over. maxVCPUs is at most MaxVCPUs.
func Open(kvmFD int, maxVCPUs int) (*Machine, error) {
	if maxVCPUs < 1 || maxVCPUs > MaxVCPUs {
		return nil, fmt.Errorf("kvm: %d vCPUs wanted, 1 to %d are possible", maxVCPUs, MaxVCPUs)
	}
	m := &Machine{kvm: uintptr(kvmFD), maxVCPUs: maxVCPUs, slots: make([]bool, 2, 16)}
	if v, err := gokvm.GetAPIVersion(m.kvm); err != nil || v != apiVersion {
		return nil, fmt.Errorf("kvm: API version %d instead of %d: %w", v, apiVersion, err)
	}
	for _, c := range []gokvm.Capability{gokvm.CapSyncRegs, gokvm.CapImmediateExit, gokvm.CapXSave} {
		if v, err := gokvm.CheckExtension(m.kvm, c); err != nil || v == 0 {
			return nil, fmt.Errorf("kvm: this kernel's KVM lacks %v", c)
		}
	}
	vm, err := gokvm.CreateVM(m.kvm)
	if err != nil {
		return nil, fmt.Errorf("kvm: create VM: %w", err)
	}
	m.vm = vm
	if err := m.setUp(); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Machine) setUp() error {
	size, err := gokvm.GetVCPUMMmapSize(m.kvm)
	if err != nil {
		return fmt.Errorf("kvm: vCPU area: %w", err)
	}
	m.runSize = int(size)
	if m.runSize < runDataSize {
		return fmt.Errorf("kvm: vCPU area of %d bytes is too small", m.runSize)
	}
	if err := m.readCPUID(); err != nil {
		return err
	}
	n := (amd64.SystemSize(m.maxVCPUs) + amd64.PageSize - 1) &^ (amd64.PageSize - 1)
	if m.system, err = anonymous(int(n)); err != nil {
		return err
	}
	amd64.FillSystem(m.system)
	copy(m.system[amd64.VDSOOffset:], amd64.VDSO())
	m.entry = amd64.StubSyscall
	if !amd64.HasVirtualization() {
		m.entry = amd64.StubFast
	}
	if m.flushMem, err = anonymous(amd64.PageSize); err != nil {
		return err
	}
	if err := m.setSlot(0, systemGPA, m.system); err != nil {
		return err
	}
	return m.setSlot(1, scratch, m.flushMem)
}

// anonymous returns size bytes of private zeroed memory outside the Go heap.
func anonymous(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("kvm: %d bytes of memory: %w", size, err)
	}
	return b, nil
}

// Close ends the machine. No vCPU may be running.
func (m *Machine) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.idle {
		v.close()
	}
	m.idle = nil
	unix.Close(int(m.vm))
	if m.system != nil {
		unix.Munmap(m.system)
	}
	if m.flushMem != nil {
		unix.Munmap(m.flushMem)
	}
}

// SystemPage returns where the page at offset in the system area is in guest-physical memory.
func (m *Machine) SystemPage(offset uint64) GPA { return GPA(systemGPA + offset) }

// SystemPages returns the size of the system area in pages.
func (m *Machine) SystemPages() int { return len(m.system) / amd64.PageSize }

// Slot is the number of a memory slot.
type Slot uint32

// ErrNoSlot reports that the machine has no free memory slot.
var ErrNoSlot = errors.New("kvm: out of memory slots")

const maxSlots = 500 // KVM offers at least 509 (KVM_CAP_NR_MEMSLOTS)

// AddSlot makes mem, page-aligned memory that must stay mapped, appear at gpa, at once and for running vCPUs
// too (KVM api.rst §4.35 KVM_SET_USER_MEMORY_REGION). Errors: ErrNoSlot, or the host's.
func (m *Machine) AddSlot(gpa GPA, mem []byte) (Slot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for n < len(m.slots) && (n < 2 || m.slots[n]) {
		n++
	}
	if n >= maxSlots {
		return 0, ErrNoSlot
	}
	if err := m.setSlot(n, gpa, mem); err != nil {
		return 0, err
	}
	if n == len(m.slots) {
		m.slots = append(m.slots, true)
	}
	m.slots[n] = true
	return Slot(n), nil
}

// RemoveSlot takes a slot's memory away; a guest that still touches it fails.
func (m *Machine) RemoveSlot(s Slot) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if int(s) < 2 || int(s) >= len(m.slots) || !m.slots[s] {
		return fmt.Errorf("kvm: no slot %d", s)
	}
	m.slots[s] = false
	return m.setSlot(int(s), 0, nil)
}

// Flush makes all vCPUs, and KVM itself, forget every translation they have cached. It costs some 0.2 ms: KVM
// drops all its shadow or nested page tables when a memory slot is deleted, and rebuilds them on demand.
func (m *Machine) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.setSlot(1, 0, nil); err != nil {
		return err
	}
	return m.setSlot(1, scratch, m.flushMem)
}

// Acquire returns an idle vCPU with cleared registers, or makes one. Errors: unix.EAGAIN when all are in use.
func (m *Machine) Acquire() (*VCPU, error) {
	m.mu.Lock()
	if n := len(m.idle); n > 0 {
		v := m.idle[n-1]
		m.idle = m.idle[:n-1]
		m.mu.Unlock()
		return v, nil
	}
	if m.made == m.maxVCPUs {
		m.mu.Unlock()
		return nil, unix.EAGAIN
	}
	id := m.made
	m.made++
	m.mu.Unlock()
	return newVCPU(m, id)
}

// Release takes back a vCPU that does not run, for reuse by another thread.
func (m *Machine) Release(v *VCPU) {
	v.reset()
	m.mu.Lock()
	m.idle = append(m.idle, v)
	m.mu.Unlock()
}

// SetRoot sets the page-table root of all vCPUs. It is called once, before the first Acquire.
func (m *Machine) SetRoot(root uint64) { m.root = root }

// Prepare makes n vCPUs ahead of their use. It is called after SetRoot, from any goroutine.
func (m *Machine) Prepare(n int) {
	for range n {
		m.mu.Lock()
		id := m.made
		if id == m.maxVCPUs {
			m.mu.Unlock()
			return
		}
		m.made++
		m.mu.Unlock()
		v, err := newVCPU(m, id)
		if err != nil {
			return // whoever needs it meets the same error
		}
		m.mu.Lock()
		m.idle = append(m.idle, v)
		m.mu.Unlock()
	}
}

// Actions returns the page of signal actions, which the guest writes as it likes.
func (m *Machine) Actions() []byte { return m.system[amd64.ActionsOffset:][:amd64.PageSize] }

// Clock returns the page that guests read at amd64.SystemBase + amd64.ClockOffset.
func (m *Machine) Clock() []byte { return m.system[amd64.ClockOffset:][:amd64.PageSize] }
