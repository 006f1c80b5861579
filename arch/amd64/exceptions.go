package amd64

// Exception is a way to make user mode take one of the CPU's exceptions.
type Exception struct {
	Name   string // the mnemonic without #, in lower case (Intel SDM vol. 3 §6.3.1 External Interrupts, Table 6-1)
	Vector int
	// Code, when user mode executes it, raises the exception. It may use RAX, RCX and the stack. Nil: no instruction of user mode can raise it
	// with the descriptor tables and control registers that Grail's guests and Linux's processes have; who wants to see it has to emulate it.
	Code []byte
	// Flags are to be set in RFLAGS when Code begins.
	Flags uint64
	Text  string // Code in words
}

// flagAC is RFLAGS.AC: alignment is checked in user mode where CR0.AM is set.
const flagAC = 1 << 18

// Exceptions are those that user mode can take.
var Exceptions = []Exception{
	{Name: "de", Vector: VectorDivide, Text: "div by zero", Code: []byte{0x31, 0xc9, 0xf7, 0xf1}},
	{Name: "db", Vector: VectorDebug, Text: "nop with RFLAGS.TF", Code: []byte{0x90, 0x90}, Flags: FlagTF},
	{Name: "bp", Vector: VectorBreakpoint, Text: "int3", Code: []byte{0xcc}},
	{Name: "of", Vector: VectorOverflow, Text: "int 4", Code: []byte{0xcd, 0x04}},
	{Name: "br", Vector: VectorBound, Text: "bound range"},
	{Name: "ud", Vector: VectorInvalidOp, Text: "ud2", Code: []byte{0x0f, 0x0b}},
	{Name: "nm", Vector: VectorNoFPU, Text: "no FPU"},
	{Name: "np", Vector: VectorSegment, Text: "segment not present"},
	// movabs rsp, 0x800000000000; push rax
	{Name: "ss", Vector: VectorStack, Text: "push at a non-canonical stack pointer", Code: []byte{0x48, 0xbc, 0, 0, 0, 0, 0, 0x80, 0, 0, 0x50}},
	{Name: "gp", Vector: VectorProtection, Text: "hlt", Code: []byte{0xf4}},
	// mov ecx, 0xbad0; mov [rcx], al
	{Name: "pf", Vector: VectorPageFault, Text: "a write to 0xbad0", Code: []byte{0xb9, 0xd0, 0xba, 0, 0, 0x88, 0x01}},
	// push 0; fldcw [rsp]; fld1; fldz; fdivp; fwait
	{Name: "mf", Vector: VectorFPU, Text: "x87 division by zero, unmasked", Code: []byte{0x6a, 0, 0xd9, 0x2c, 0x24, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b}},
	// mov eax, [rsp+1]
	{Name: "ac", Vector: VectorAlignment, Text: "an unaligned read with RFLAGS.AC", Code: []byte{0x8b, 0x44, 0x24, 0x01}, Flags: flagAC},
	// push 0; ldmxcsr [rsp]; xorps xmm0, xmm0; divss xmm0, xmm0
	{Name: "xm", Vector: VectorSIMD, Text: "SSE division 0/0, unmasked", Code: []byte{0x6a, 0, 0x0f, 0xae, 0x14, 0x24, 0x0f, 0x57, 0xc0, 0xf3, 0x0f, 0x5e, 0xc0}},
}

// LookupException returns the exception of that name and its place in Exceptions, or nil.
func LookupException(name string) (e *Exception, i int) {
	for i := range Exceptions {
		if Exceptions[i].Name == name {
			return &Exceptions[i], i
		}
	}
	return nil, 0
}

// Exceptions' code in the stub page. What follows each piece are breakpoints.
const (
	exceptionsOffset = 1024
	exceptionRoom    = 32
)

// ExceptionCode returns the guest-virtual address of the code of Exceptions[i].
func ExceptionCode(i int) uint64 {
	return SystemBase + StubOffset + exceptionsOffset + uint64(i)*exceptionRoom
}
