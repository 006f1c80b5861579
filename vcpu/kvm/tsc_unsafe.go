package kvm

import (
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// zeroTSCOffset makes the guest's TSC the host's, so that one set of clock parameters fits all vCPUs (KVM
// vcpu.rst §4.1 KVM_VCPU_TSC_OFFSET). A KVM that does not know the attribute has a guest TSC that cannot be
// offset at all: software KVM, where guest user mode reads the host's.
func (v *VCPU) zeroTSCOffset() {
	var offset uint64
	// struct kvm_device_attr
	attr := struct {
		flags, group uint32
		attr, addr   uint64
	}{attr: 0, addr: uint64(uintptr(unsafe.Pointer(&offset)))}
	// Safe: attr and offset live across the call; the kernel reads 8 bytes of offset.
	_, _ = gokvm.Ioctl(v.fd, gokvm.IIOW(0xe1, 24), uintptr(unsafe.Pointer(&attr)))
}
