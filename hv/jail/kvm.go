package jail

// ioctl request encoding (asm-generic/ioctl.h), type 0xae: KVM.
func io(nr uint32) uint32         { return 0xae00 | nr }
func iow(nr, size uint32) uint32  { return 1<<30 | size<<16 | io(nr) }
func ior(nr, size uint32) uint32  { return 2<<30 | size<<16 | io(nr) }
func iowr(nr, size uint32) uint32 { return 3<<30 | size<<16 | io(nr) }

// KVMIoctls are the KVM requests (KVM api.rst §4) of a running VM whose virtual machine exists already: vCPUs, their
// state, memory slots and event descriptors. Nothing here creates another VM or passes a device through.
var KVMIoctls = []uint32{
	io(0x80),        // KVM_RUN
	iow(0x46, 32),   // KVM_SET_USER_MEMORY_REGION
	io(0x41),        // KVM_CREATE_VCPU
	ior(0x81, 144),  // KVM_GET_REGS
	iow(0x82, 144),  // KVM_SET_REGS
	ior(0x83, 312),  // KVM_GET_SREGS
	iow(0x84, 312),  // KVM_SET_SREGS
	ior(0x8c, 416),  // KVM_GET_FPU
	iow(0x8d, 416),  // KVM_SET_FPU
	ior(0xa4, 4096), // KVM_GET_XSAVE
	iow(0xa5, 4096), // KVM_SET_XSAVE
	ior(0xa6, 392),  // KVM_GET_XCRS
	iow(0xa7, 392),  // KVM_SET_XCRS
	iowr(0x88, 8),   // KVM_GET_MSRS
	iow(0x89, 8),    // KVM_SET_MSRS
	iow(0x90, 8),    // KVM_SET_CPUID2
	ior(0x9f, 64),   // KVM_GET_VCPU_EVENTS
	iow(0xa0, 64),   // KVM_SET_VCPU_EVENTS
	ior(0xa1, 128),  // KVM_GET_DEBUGREGS
	iow(0xa2, 128),  // KVM_SET_DEBUGREGS
	iow(0x8b, 4),    // KVM_SET_SIGNAL_MASK
	ior(0x7c, 48),   // KVM_GET_CLOCK
	iow(0x7b, 48),   // KVM_SET_CLOCK
	io(0xad),        // KVM_KVMCLOCK_CTRL
	io(0xa2),        // KVM_SET_TSC_KHZ
	io(0xa3),        // KVM_GET_TSC_KHZ
	iow(0xe1, 24),   // KVM_SET_DEVICE_ATTR
	iow(0xe2, 24),   // KVM_GET_DEVICE_ATTR
	iow(0xe3, 24),   // KVM_HAS_DEVICE_ATTR
	iow(0x76, 32),   // KVM_IRQFD
	iow(0x79, 64),   // KVM_IOEVENTFD
	io(0x03),        // KVM_CHECK_EXTENSION
}
