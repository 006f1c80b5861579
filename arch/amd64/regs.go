package amd64

// Regs are the general registers, in the order of struct kvm_regs (KVM api.rst §4.11 KVM_GET_REGS).
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Flag bits (Intel SDM vol. 1 §3.4.3 EFLAGS Register).
const (
	FlagFixed = 1 << 1 // always set
	FlagTF    = 1 << 8 // single step
	FlagIF    = 1 << 9
	FlagDF    = 1 << 10

	// UserFlags are the flags that user mode may choose: CF PF AF ZF SF TF DF OF AC ID. Linux's
	// sigreturn restores the same set, less ID.
	UserFlags = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | FlagTF | FlagDF | 0x800 | 1<<18 | 1<<21
)

// SafeFlags returns flags as user mode may have them.
func SafeFlags(flags uint64) uint64 { return flags&UserFlags | FlagFixed | FlagIF }

// Selectors of the guest's descriptor table. Their order is what SYSCALL and SYSRET derive from STAR
// (Intel SDM vol. 2 SYSCALL, SYSRET): user data directly before user code.
const (
	KernelCode = 0x10
	KernelData = 0x18
	UserData   = 0x28 | 3
	UserCode   = 0x30 | 3
	TaskState  = 0x40
)

// Exception vectors (Intel SDM vol. 3 §6.3.1 External Interrupts, Table 6-1).
const (
	VectorDivide     = 0
	VectorDebug      = 1
	VectorNMI        = 2
	VectorBreakpoint = 3
	VectorOverflow   = 4
	VectorBound      = 5
	VectorInvalidOp  = 6
	VectorNoFPU      = 7
	VectorDouble     = 8
	VectorTSS        = 10
	VectorSegment    = 11
	VectorStack      = 12
	VectorProtection = 13
	VectorPageFault  = 14
	VectorFPU        = 16
	VectorAlignment  = 17
	VectorMachine    = 18
	VectorSIMD       = 19
	VectorControl    = 21
	Vectors          = 32
)

// HasErrorCode reports whether the CPU pushes an error code for the vector (Intel SDM vol. 3 §6.13 Error Code).
func HasErrorCode(vector int) bool {
	switch vector {
	case VectorDouble, VectorTSS, VectorSegment, VectorStack, VectorProtection, VectorPageFault,
		VectorAlignment, VectorControl:
		return true
	}
	return false
}

// Page-fault error code bits (Intel SDM vol. 3 §4.7 Page-Fault Exceptions).
const (
	FaultPresent = 1 << 0
	FaultWrite   = 1 << 1
	FaultUser    = 1 << 2
	FaultFetch   = 1 << 4
)

// Canonical reports whether addr is in the lower half of the 48-bit address space, where guests live.
func Canonical(addr uint64) bool { return addr < 1<<47 }
