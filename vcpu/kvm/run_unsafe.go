package kvm

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
)

// runData is struct kvm_run of a vCPU, shared with the kernel (KVM api.rst §5 The kvm_run structure), with the
// synchronised registers of x86 (§4.10 KVM_RUN, §6.75 KVM_CAP_SYNC_REGS).
type runData struct {
	control     uint32 // request_interrupt_window, immediate_exit, two bytes of padding
	_           uint32
	exitReason  uint32
	_           uint32 // ready_for_interrupt_injection, if_flag, flags
	cr8         uint64
	apicBase    uint64
	exit        [32]uint64
	validRegs   uint64
	dirtyRegs   uint64
	regs        amd64.Regs
	sregs       gokvm.Sregs
	eventsSpace [64]byte
}

const runDataSize = int(unsafe.Sizeof(runData{}))

// Bits of validRegs and dirtyRegs.
const (
	syncRegs  = 1 << 0
	syncSregs = 1 << 1
)

// immediateExit is the byte immediate_exit within runData.control, little-endian.
const immediateExit = 1 << 8

// setImmediateExit makes the next KVM_RUN return EINTR at once (api.rst §5 immediate_exit).
func (r *runData) setImmediateExit()   { atomic.StoreUint32(&r.control, immediateExit) }
func (r *runData) clearImmediateExit() { atomic.StoreUint32(&r.control, 0) }

// mapRun maps the vCPU's shared area.
func mapRun(fd uintptr, size int) ([]byte, *runData, error) {
	mem, err := unix.Mmap(int(fd), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("kvm: map vCPU: %w", err)
	}
	// Safe: the area is page-aligned and at least runDataSize long (checked by setUp), and mem keeps it mapped.
	return mem, (*runData)(unsafe.Pointer(&mem[0])), nil
}

// setSlot sets memory slot n; nil mem deletes it. The caller holds m.mu.
func (m *Machine) setSlot(n int, gpa GPA, mem []byte) error {
	r := gokvm.UserspaceMemoryRegion{Slot: uint32(n), GuestPhysAddr: uint64(gpa), MemorySize: uint64(len(mem))}
	if len(mem) > 0 {
		// Safe: the kernel pins nothing; mem stays mapped until the slot is deleted (AddSlot's contract).
		r.UserspaceAddr = uint64(uintptr(unsafe.Pointer(&mem[0])))
	}
	if err := gokvm.SetUserMemoryRegion(m.vm, &r); err != nil {
		return fmt.Errorf("kvm: memory slot %d of %d bytes at %#x: %w", n, len(mem), gpa, err)
	}
	return nil
}

// ioctlBytes performs an ioctl whose argument is the struct in b.
func ioctlBytes(fd, op uintptr, b []byte) error {
	// Safe: the callers size b for the operation; b lives across the call.
	_, err := gokvm.Ioctl(fd, op, uintptr(unsafe.Pointer(&b[0])))
	return err
}
