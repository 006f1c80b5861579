package kvm

import (
	"encoding/binary"
	"fmt"
)

// FPUSize is the size in bytes of the FPU state that guests have: the legacy area, the XSAVE header and the
// upper halves of the AVX registers (Intel SDM vol. 1 §13.4 XSAVE Area).
const FPUSize = 512 + 64 + 256

const xsaveSize = 4096 // struct kvm_xsave

// FPU copies the FPU state to dst, FPUSize bytes, in the standard XSAVE format (KVM api.rst §4.42 KVM_GET_XSAVE).
func (v *VCPU) FPU(dst []byte) error {
	var b [xsaveSize]byte
	if err := ioctlBytes(v.fd, kvmGetXSave, b[:]); err != nil {
		return fmt.Errorf("kvm: get FPU state: %w", err)
	}
	copy(dst[:FPUSize], b[:])
	return nil
}

// SetFPU sets the FPU state from src, FPUSize bytes that may come from a guest: reserved bits are cleared. A nil
// src sets the initial state (KVM api.rst §4.43 KVM_SET_XSAVE).
func (v *VCPU) SetFPU(src []byte) error {
	var b [xsaveSize]byte
	if src == nil {
		binary.LittleEndian.PutUint16(b[0:], 0x37f)   // FCW
		binary.LittleEndian.PutUint32(b[24:], 0x1f80) // MXCSR
	} else {
		copy(b[:], src[:FPUSize])
		mxcsr := binary.LittleEndian.Uint32(b[24:]) & 0xffff
		binary.LittleEndian.PutUint32(b[24:], mxcsr)
		clear(b[416:512])
		states := binary.LittleEndian.Uint64(b[512:])
		clear(b[512:576])
		binary.LittleEndian.PutUint64(b[512:], states&v.m.xcr0)
	}
	binary.LittleEndian.PutUint32(b[28:], 0) // MXCSR_MASK is ignored
	if err := ioctlBytes(v.fd, kvmSetXSave, b[:]); err != nil {
		return fmt.Errorf("kvm: set FPU state: %w", err)
	}
	return nil
}
