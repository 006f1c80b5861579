package kvm

import (
	"encoding/binary"
	"fmt"
)

const (
	// MaxFPUSize bounds VCPU.FPUSize: the legacy area, the XSAVE header, AVX and AVX-512 where Intel's
	// processors have them (Intel SDM vol. 1 §13.4 XSAVE Area, §13.5 XSAVE-Managed State).
	MaxFPUSize = 2688
	// LegacyFPUSize is the size of the part that FXSAVE knows: x87 and SSE.
	LegacyFPUSize = 512

	legacySize = LegacyFPUSize + 64 // with the header
	xsaveSize  = 4096               // struct kvm_xsave
)

// FPUSize returns the size in bytes of the guest's FPU state in the standard XSAVE format.
func (v *VCPU) FPUSize() int { return v.m.fpuSize }

// FPUStates returns the guest's XCR0: which states the FPU state has.
func (v *VCPU) FPUStates() uint64 { return v.m.xcr0 }

// FPU copies the FPU state to dst, FPUSize bytes, in the standard XSAVE format (KVM api.rst §4.42 KVM_GET_XSAVE).
func (v *VCPU) FPU(dst []byte) error {
	var b [xsaveSize]byte
	if err := ioctlBytes(v.fd, kvmGetXSave, b[:]); err != nil {
		return fmt.Errorf("kvm: get FPU state: %w", err)
	}
	copy(dst[:v.m.fpuSize], b[:])
	return nil
}

// SetFPU sets the FPU state from src, which may come from a guest: reserved bits are cleared. src is FPUSize bytes, or
// LegacyFPUSize, with which all but x87 and SSE become initial. A nil src sets the initial state (KVM api.rst
// §4.43 KVM_SET_XSAVE).
func (v *VCPU) SetFPU(src []byte) error {
	var b [xsaveSize]byte
	states := uint64(xStateX87 | xStateSSE)
	switch {
	case src == nil:
		states = 0
		binary.LittleEndian.PutUint16(b[0:], 0x37f)   // FCW
		binary.LittleEndian.PutUint32(b[24:], 0x1f80) // MXCSR
	case len(src) >= v.m.fpuSize:
		copy(b[:], src[:v.m.fpuSize])
		states = binary.LittleEndian.Uint64(b[LegacyFPUSize:]) & v.m.xcr0
	default:
		copy(b[:], src[:LegacyFPUSize])
	}
	mxcsr := binary.LittleEndian.Uint32(b[24:]) & 0xffff
	binary.LittleEndian.PutUint32(b[24:], mxcsr)
	binary.LittleEndian.PutUint32(b[28:], 0) // MXCSR_MASK is ignored
	clear(b[416:legacySize])                 // what FXSAVE leaves to software, and the header
	binary.LittleEndian.PutUint64(b[LegacyFPUSize:], states)
	if err := ioctlBytes(v.fd, kvmSetXSave, b[:]); err != nil {
		return fmt.Errorf("kvm: set FPU state: %w", err)
	}
	return nil
}
