#include "textflag.h"

// LDAR/STLR are acquire and release (Arm ARM B2.3.11 Load-Acquire, Store-Release). A release followed by an
// acquire of another location is ordered too, but a release followed by a plain load is not: use fence.

// func load16(p *byte) uint16
TEXT ·load16(SB), NOSPLIT, $0-10
	MOVD	p+0(FP), R0
	LDARH	(R0), R1
	MOVH	R1, ret+8(FP)
	RET

// func store16(p *byte, v uint16)
TEXT ·store16(SB), NOSPLIT, $0-10
	MOVD	p+0(FP), R0
	MOVHU	v+8(FP), R1
	STLRH	R1, (R0)
	RET

// func store8(p *byte, v uint8)
TEXT ·store8(SB), NOSPLIT, $0-9
	MOVD	p+0(FP), R0
	MOVBU	v+8(FP), R1
	STLRB	R1, (R0)
	RET

// func fence()
// DMB ISH: all CPUs that run the two peers are in one inner-shareable domain.
TEXT ·fence(SB), NOSPLIT, $0-0
	DMB	$0xB
	RET

// func pause(n uint32)
TEXT ·pause(SB), NOSPLIT, $0-4
	MOVWU	n+0(FP), R0
loop:
	CBZ	R0, done
	YIELD
	SUB	$1, R0
	B	loop
done:
	RET
