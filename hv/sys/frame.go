package sys

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/vcpu/kvm"
)

// Layout of Linux's struct rt_sigframe on amd64 (arch/x86/include/asm/sigframe.h, uapi/asm/sigcontext.h), by
// offset from the frame's start.
const (
	frameFlags = 8
	frameStack = 24
	frameRegs  = 48 // r8–r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags
	frameSegs  = frameRegs + 18*8
	frameErr   = frameSegs + 8
	frameTrap  = frameErr + 8
	frameMask0 = frameTrap + 8
	frameCR2   = frameMask0 + 8
	frameFPU   = frameCR2 + 8
	frameMask  = frameFPU + 8 + 64
	frameInfo  = frameMask + 8
	frameSize  = frameInfo + 128

	redZone = 128

	// struct _fpx_sw_bytes within the legacy FPU area, and the word behind the extended state.
	fpuSoftware = 464
	fpuMagic1   = 0x46505853
	fpuMagic2   = 0x46505845
)

// frameRegisters lists the registers in the order of struct sigcontext.
func frameRegisters(r *amd64.Regs) [18]*uint64 {
	return [18]*uint64{&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15, &r.RDI, &r.RSI, &r.RBP,
		&r.RBX, &r.RDX, &r.RAX, &r.RCX, &r.RSP, &r.RIP, &r.RFLAGS}
}

// pushFrame makes the thread enter a signal handler, with what it needs to return on its stack.
func (t *thread) pushFrame(act sigaction, info siginfo, mask uint64) error {
	r := t.cpu.Regs()
	if !amd64.Canonical(act.handler) || act.restorer == 0 {
		return unix.EFAULT
	}
	sp := r.RSP - redZone
	onStack := uint32(0)
	if act.flags&saOnStack != 0 && t.altStack.size != 0 {
		onStack = ssOnStack
		if !t.onAltStack() {
			sp = t.altStack.sp + t.altStack.size
			onStack = 0
		}
	}
	fpuSize := t.cpu.FPUSize()
	fpu := (sp - uint64(fpuSize) - 8) &^ 63
	frame := (fpu-frameSize)&^15 - 8

	var b [frameSize + 64 + 16 + kvm.MaxFPUSize + 8]byte
	le := binary.LittleEndian
	le.PutUint64(b[0:], act.restorer)
	le.PutUint64(b[frameFlags:], 1|2|4) // UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
	flags := onStack
	if t.altStack.size == 0 {
		flags = ssDisable
	}
	le.PutUint64(b[frameStack:], t.altStack.sp)
	le.PutUint32(b[frameStack+8:], flags)
	le.PutUint64(b[frameStack+16:], t.altStack.size)
	for i, reg := range frameRegisters(r) {
		le.PutUint64(b[frameRegs+8*i:], *reg)
	}
	le.PutUint16(b[frameSegs:], amd64.UserCode)
	le.PutUint16(b[frameSegs+6:], amd64.UserData)
	t.g.mu.Lock()
	if f := t.g.fault; f != nil && f.Thread == t.tid && f.Signal == info.signo {
		le.PutUint64(b[frameErr:], f.Error)
		le.PutUint64(b[frameTrap:], uint64(f.Vector))
		le.PutUint64(b[frameCR2:], f.Address)
	}
	t.g.mu.Unlock()
	le.PutUint64(b[frameMask0:], mask)
	le.PutUint64(b[frameMask:], mask)
	le.PutUint64(b[frameFPU:], fpu)
	le.PutUint32(b[frameInfo:], uint32(info.signo))
	le.PutUint32(b[frameInfo+8:], uint32(info.code))
	le.PutUint64(b[frameInfo+16:], info.a)
	le.PutUint64(b[frameInfo+24:], info.b)

	state := b[fpu-frame:]
	if err := t.cpu.FPU(state[:fpuSize]); err != nil {
		return err
	}
	le.PutUint32(state[fpuSoftware:], fpuMagic1)
	le.PutUint32(state[fpuSoftware+4:], uint32(fpuSize)+4)
	le.PutUint64(state[fpuSoftware+8:], t.cpu.FPUStates())
	le.PutUint32(state[fpuSoftware+16:], uint32(fpuSize))
	le.PutUint32(state[fpuSize:], fpuMagic2)
	if err := t.g.space.CopyOut(frame, b[:fpu-frame+uint64(fpuSize)+4]); err != nil {
		return err
	}
	r.RSP = frame
	r.RIP = act.handler
	r.RDI = uint64(info.signo)
	r.RSI = frame + frameInfo
	r.RDX = frame + frameFlags
	r.RAX = 0
	r.RFLAGS &^= amd64.FlagDF | amd64.FlagTF
	t.cpu.Restore()
	return nil
}

// rtSigreturn takes the registers back from the frame that pushFrame made, or that the guest made up.
func (t *thread) rtSigreturn() error {
	r := t.cpu.Regs()
	frame := r.RSP - 8
	var b [frameSize]byte
	if err := t.g.space.CopyIn(frame, b[:]); err != nil {
		return err
	}
	le := binary.LittleEndian
	var next amd64.Regs
	for i, reg := range frameRegisters(&next) {
		*reg = le.Uint64(b[frameRegs+8*i:])
	}
	if !amd64.Canonical(next.RIP) {
		return unix.EFAULT
	}
	if err := t.restoreFPU(le.Uint64(b[frameFPU:])); err != nil {
		return err
	}
	*r = next
	t.cpu.Restore()
	s := &t.g.signals
	s.mu.Lock()
	t.mask = le.Uint64(b[frameMask:]) &^ unblockable
	s.mu.Unlock()
	return nil
}

// restoreFPU takes the FPU state from a signal frame's at, 0 meaning the initial state. As in Linux, a state without
// both magic numbers is a legacy one.
func (t *thread) restoreFPU(at uint64) error {
	if at == 0 {
		return t.cpu.SetFPU(nil)
	}
	var b [kvm.MaxFPUSize + 4]byte
	if err := t.g.space.CopyIn(at, b[:kvm.LegacyFPUSize]); err != nil {
		return err
	}
	le, n := binary.LittleEndian, t.cpu.FPUSize()
	if le.Uint32(b[fpuSoftware:]) == fpuMagic1 && le.Uint32(b[fpuSoftware+16:]) == uint32(n) &&
		t.g.space.CopyIn(at, b[:n+4]) == nil && le.Uint32(b[n:]) == fpuMagic2 {
		return t.cpu.SetFPU(b[:n])
	}
	return t.cpu.SetFPU(b[:kvm.LegacyFPUSize])
}

// maxFrames bounds a crash report's stack.
const maxFrames = 64

// record keeps f as the guest's last fault, with the thread's registers, code and return addresses.
func (t *thread) record(f *hv.Fault) {
	r := t.cpu.Regs()
	f.Taken = time.Now()
	f.Thread = t.tid
	f.Bias = t.g.bias
	f.Regs = map[string]uint64{
		"rax": r.RAX, "rbx": r.RBX, "rcx": r.RCX, "rdx": r.RDX, "rsi": r.RSI, "rdi": r.RDI, "rsp": r.RSP, "rbp": r.RBP,
		"r8": r.R8, "r9": r.R9, "r10": r.R10, "r11": r.R11, "r12": r.R12, "r13": r.R13, "r14": r.R14, "r15": r.R15,
		"rip": r.RIP, "rflags": r.RFLAGS, "fs_base": t.cpu.FSBase(),
	}
	code := make([]byte, 16)
	for len(code) > 0 && t.g.space.CopyIn(r.RIP, code) != nil {
		code = code[:len(code)-1]
	}
	f.Code = code
	for fp := r.RBP; len(f.Frames) < maxFrames && fp&7 == 0; {
		var b [16]byte
		if t.g.space.CopyIn(fp, b[:]) != nil {
			break
		}
		next, ret := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
		if ret == 0 {
			break
		}
		f.Frames = append(f.Frames, ret)
		if next <= fp { // stacks grow down: anything else is no chain
			break
		}
		fp = next
	}
	t.g.mu.Lock()
	t.g.fault = f
	t.g.mu.Unlock()
}

// recordIfNone keeps the registers of a thread that a signal without a fault ends.
func (t *thread) recordIfNone(info siginfo) {
	t.g.mu.Lock()
	f := t.g.fault
	t.g.mu.Unlock()
	if f == nil || f.Thread != t.tid || f.Signal != info.signo {
		if f == nil {
			t.record(&hv.Fault{Vector: -1, Signal: info.signo})
		}
	}
}

// recordIfStopped keeps where a thread was that ran when the guest was stopped: of one that hangs, that is what one wants to know. A guest that has
// taken a fault has that to tell.
func (t *thread) recordIfStopped() {
	t.g.mu.Lock()
	stopped := t.g.end != nil && t.g.end.Cause == hv.CauseStop && t.g.fault == nil
	t.g.mu.Unlock()
	if stopped {
		t.record(&hv.Fault{Vector: -1})
	}
}

// String makes an End readable.
func (e End) String() string {
	switch e.Cause {
	case hv.CauseExit:
		return fmt.Sprintf("exit code %d", e.Code)
	case hv.CauseSignal:
		return fmt.Sprintf("signal %d (%v) %s", e.Signal, unix.Signal(e.Signal), e.Message)
	}
	return fmt.Sprintf("%s: %s", e.Cause, e.Message)
}
