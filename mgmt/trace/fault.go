package trace

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/disasm"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// x86 exception vectors (Intel SDM volume 3 §6.15).
const (
	vecDivide     = 0
	vecDebug      = 1
	vecBreakpoint = 3
	vecOverflow   = 4
	vecBound      = 5
	vecUndefined  = 6
	vecNoFPU      = 7
	vecStack      = 12
	vecProtection = 13
	vecPage       = 14
	vecFPU        = 16
	vecAlign      = 17
	vecSIMD       = 19
)

// Bits of a page fault's error code (Intel SDM volume 3 §4.7).
const (
	pfPresent = 1 << 0
	pfWrite   = 1 << 1
	pfFetch   = 1 << 4
)

// Decode explains a fault. program may be nil; then addresses stay without names.
func Decode(f *hv.Fault, program *Program) *api.Trace {
	t := &api.Trace{What: what(f), Stack: []api.Frame{}}
	pc, ok := f.Regs["rip"]
	if !ok {
		return t
	}
	inst, err := disasm.Decode(disasm.AMD64, f.Code, pc, program.symbol(f.Bias))
	switch {
	case err == nil:
		t.Instruction = inst.String()
	case errors.Is(err, disasm.ErrUnknown) && len(f.Code) == 0:
		t.Instruction = "not readable"
	default:
		t.Instruction = err.Error()
	}
	t.Stack = append(t.Stack, program.frame(pc, pc, f.Bias))
	for _, ret := range f.Frames {
		// The call is the instruction before the one it returns to.
		t.Stack = append(t.Stack, program.frame(ret, ret-1, f.Bias))
	}
	return t
}

func what(f *hv.Fault) string {
	if f.Signal == 0 && f.Vector < 0 {
		return fmt.Sprintf("none: where thread %d was when it was stopped", f.Thread)
	}
	s := "signal " + unix.SignalName(unix.Signal(f.Signal))
	switch f.Vector {
	case vecDivide:
		s = "divide error"
	case vecDebug:
		s = "debug exception"
	case vecBreakpoint:
		s = "breakpoint"
	case vecOverflow:
		s = "overflow"
	case vecBound:
		s = "bound range exceeded"
	case vecUndefined:
		s = "invalid instruction"
	case vecNoFPU:
		s = "no floating-point unit"
	case vecStack:
		s = "stack segment fault"
	case vecProtection:
		s = "general protection fault"
	case vecPage:
		how := "reading"
		if f.Error&pfFetch != 0 {
			how = "executing"
		} else if f.Error&pfWrite != 0 {
			how = "writing"
		}
		kind := "unmapped"
		if f.Error&pfPresent != 0 {
			kind = "protected"
		}
		s = fmt.Sprintf("page fault %s %s address %#x", how, kind, f.Address)
	case vecFPU, vecSIMD:
		s = "floating-point exception"
	case vecAlign:
		s = "alignment check"
	}
	if f.Vector >= 0 && f.Signal != 0 {
		s += " (" + unix.SignalName(unix.Signal(f.Signal)) + ")"
	}
	return fmt.Sprintf("%s in thread %d", s, f.Thread)
}
