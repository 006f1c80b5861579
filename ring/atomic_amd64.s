#include "textflag.h"

// x86 keeps loads in order with loads and stores in order with stores (Intel SDM volume 3 §8.2.2), so a plain
// MOV is a load-acquire and a store-release; only store-then-load needs an instruction.

// func load16(p *byte) uint16
TEXT ·load16(SB), NOSPLIT, $0-10
	MOVQ	p+0(FP), AX
	MOVWLZX	(AX), CX
	MOVW	CX, ret+8(FP)
	RET

// func store16(p *byte, v uint16)
TEXT ·store16(SB), NOSPLIT, $0-10
	MOVQ	p+0(FP), AX
	MOVW	v+8(FP), CX
	MOVW	CX, (AX)
	RET

// func store8(p *byte, v uint8)
TEXT ·store8(SB), NOSPLIT, $0-9
	MOVQ	p+0(FP), AX
	MOVB	v+8(FP), CX
	MOVB	CX, (AX)
	RET

// func fence()
// A locked read-modify-write of our own stack is a full barrier for write-back memory and is cheaper than
// MFENCE. Adding zero leaves the word (the return address) as it is.
TEXT ·fence(SB), NOSPLIT, $0-0
	LOCK
	ADDL	$0, 0(SP)
	RET

// func pause(n uint32)
TEXT ·pause(SB), NOSPLIT, $0-4
	MOVL	n+0(FP), CX
loop:
	TESTL	CX, CX
	JEQ	done
	PAUSE
	DECL	CX
	JMP	loop
done:
	RET
