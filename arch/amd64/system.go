package amd64

import "encoding/binary"

// The system area is guest memory that only the CPU and the trap stub use. It is mapped at SystemBase,
// above all addresses that a guest can map, and readable from user mode only where noted.
const (
	SystemBase = 0x7fff_f000_0000 // guest-virtual; user mappings end below it

	StubOffset  = 0x0000 // trap stub: user-executable, since software KVM enters it at CPL 3
	VDSOOffset  = 0x1000 // vDSO code, user-executable
	ClockOffset = 0x2000 // clock parameters, user-readable; see Clock
	// ActionsOffset is a page that the user may read and write: the signal actions, see ActionSize.
	ActionsOffset = 0x3000
	GDTOffset     = 0x4000 // supervisor only, from here on
	IDTOffset     = 0x5000
	TaskOffset    = 0x6000 // one page a vCPU: TSS at its start, exception stack at its end

	PageSize  = 4096
	LargePage = 2 << 20
)

// SystemSize returns the bytes of the system area for n vCPUs.
func SystemSize(n int) uint64 { return TaskOffset + uint64(n)*PageSize }

// Ports on which the trap stub leaves the VM. User mode may use PortSyscall alone; an OUT to any other
// port raises a general protection fault, because the TSS's permission bitmap ends before it.
const (
	PortSyscall   = 0x10
	PortException = 0x80 // plus the vector
)

// StubSyscall is the guest-virtual address that SYSCALL enters (IA32_LSTAR).
const StubSyscall = SystemBase + StubOffset

// StubSysret is the address of the stub's SYSRETQ, by which kernel mode returns to user mode.
const StubSysret = StubSyscall + 2

// ActionSize is the size of one signal action, Linux's struct kernel_sigaction on amd64. That of signal n lies
// n × ActionSize into the actions page. The guest may write what it likes there: it is its own signals.
const ActionSize = 32

// StubFast is the address that SYSCALL enters instead of StubSyscall where the stub runs in user mode.
const StubFast = SystemBase + StubOffset + fastOffset

const fastOffset = 512

// InFastPath reports whether rip is in the code behind StubFast. All of a system call's registers but RAX (which
// was 13) and R10 (which was 8) are intact there.
func InFastPath(rip uint64) bool {
	off := rip - StubFast
	return off < uint64(len(fastAction))
}

// FillSystem writes stub, GDT, IDT and nothing else into system, the system area's memory.
func FillSystem(system []byte) {
	stub := system[StubOffset : StubOffset+PageSize]
	for i := range stub {
		stub[i] = 0xcc // int3
	}
	// out %al, $PortSyscall; sysretq
	copy(stub, []byte{0xe6, PortSyscall, 0x48, 0x0f, 0x07})
	copy(stub[fastOffset:], fastAction)
	for v := range Vectors {
		// out %al, $(PortException+v); hlt
		copy(stub[handlerOffset(v):], []byte{0xe6, PortException + byte(v), 0xf4})
	}
	for i := range Exceptions {
		copy(stub[exceptionsOffset+i*exceptionRoom:], Exceptions[i].Code)
	}

	gdt := system[GDTOffset:]
	put := func(selector int, descriptor uint64) {
		binary.LittleEndian.PutUint64(gdt[selector&^7:], descriptor)
	}
	// Intel SDM vol. 3 §3.4.5 Segment Descriptors: present, 64-bit code (L) or data.
	put(KernelCode, 0x00af9b000000ffff)
	put(KernelData, 0x00cf93000000ffff)
	put(UserData, 0x00cff3000000ffff)
	put(UserCode, 0x00affb000000ffff)

	idt := system[IDTOffset:]
	for v := range Vectors {
		// Intel SDM vol. 3 §6.14.1 64-Bit Mode IDT: present interrupt gate; INT3 and INTO from user mode.
		dpl := uint64(0)
		if v == VectorBreakpoint || v == VectorOverflow {
			dpl = 3
		}
		addr := uint64(SystemBase + StubOffset + handlerOffset(v))
		lo := addr&0xffff | KernelCode<<16 | (0x8e|dpl<<5)<<40 | addr>>16&0xffff<<48
		binary.LittleEndian.PutUint64(idt[16*v:], lo)
		binary.LittleEndian.PutUint64(idt[16*v+8:], addr>>32)
	}
}

func handlerOffset(vector int) int { return 16 + 4*vector }

// StubVector returns the exception whose handler starts at rip, or false if none does.
func StubVector(rip uint64) (vector int, ok bool) {
	off := rip - (SystemBase + StubOffset)
	vector = (int(off) - handlerOffset(0)) / 4
	return vector, off < PageSize && vector >= 0 && vector < Vectors && int(off) == handlerOffset(vector)
}

// Limits of the tables that FillSystem and FillTask write.
const (
	GDTLimit = 0x40 - 1
	IDTLimit = 16*Vectors - 1
	TSSLimit = tssSize + (PortSyscall/8 + 1) // one byte of set bits ends the bitmap
	tssSize  = 104
)

// TaskAddress returns the guest-virtual address of vCPU i's TSS.
func TaskAddress(i int) uint64 { return SystemBase + TaskOffset + uint64(i)*PageSize }

// FillTask writes vCPU i's TSS: an exception stack at the end of its page, and an I/O permission bitmap that
// lets user mode reach PortSyscall (Intel SDM vol. 3 §7.7 Task Management in 64-bit Mode).
func FillTask(system []byte, i int) {
	tss := system[TaskOffset+i*PageSize:][:PageSize]
	clear(tss)
	binary.LittleEndian.PutUint64(tss[4:], TaskAddress(i)+PageSize) // RSP0
	binary.LittleEndian.PutUint16(tss[102:], tssSize)               // where the bitmap starts
	bitmap := tssSize + PortSyscall/8
	for j := tssSize; j <= TSSLimit; j++ {
		tss[j] = 0xff
	}
	tss[bitmap] &^= 1 << (PortSyscall % 8)
}

// ExceptionFrame is what the CPU pushed on the exception stack (Intel SDM vol. 3 §6.14.2 64-Bit Mode Stack Frame).
type ExceptionFrame struct{ Error, RIP, CS, RFLAGS, RSP, SS uint64 }

// ReadException returns the frame on vCPU i's exception stack after an exception of the vector.
func ReadException(system []byte, i, vector int) ExceptionFrame {
	top := system[TaskOffset+i*PageSize:][:PageSize]
	word := func(n int) uint64 { return binary.LittleEndian.Uint64(top[PageSize-8*n:]) }
	f := ExceptionFrame{SS: word(1), RSP: word(2), RFLAGS: word(3), CS: word(4), RIP: word(5)}
	if HasErrorCode(vector) {
		f.Error = word(6)
	}
	return f
}
